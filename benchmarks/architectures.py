"""Which architectures can be trained in local modules, family by family.

    python benchmarks/architectures.py [--write] [NAME ...]

Each family of benchmarks/families.py in three modules with DGL+HPFF, random weights, tiny inputs:
one step in float64, whose every gradient is compared with that of the naive implementation
(hpff.check_gradients). --write puts the table into docs/architectures.md.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from families import CLASSES, FAMILIES, Family
from torch import nn

from hpff import LocalLearner, check_gradients
from hpff.cutting.partition import partition
from hpff.errors import UserError

DOCS = Path(__file__).parent.parent / "docs" / "architectures.md"
MODULES = 3


@dataclass(frozen=True)
class Outcome:
    """What became of a family.

    Attributes:
        most: how many modules it can be cut into; 0 if that is not known.
        features: what its modules hand on.
        difference: of the gradients from the naive ones, relative; None if it was not trained.
        refused: why.
    """

    family: Family
    most: int = 0
    features: str = ""
    difference: float | None = None
    refused: str = ""


def learner(family: Family, model: nn.Module, dtype: torch.dtype = torch.float32) -> LocalLearner:
    """A learner of three modules."""
    return LocalLearner(model, modules=MODULES, example=family.inputs(dtype), num_classes=CLASSES)


def outcome(family: Family) -> Outcome:
    """Train one step and compare."""
    dtype = torch.float32 if family.single else torch.float64
    model = family.build().to(dtype)
    inputs = family.inputs(dtype)
    most = most_modules(model, inputs)
    try:
        found = learner(family, model, dtype)
    except UserError as error:
        return Outcome(family, most, refused=str(error))
    differences = check_gradients(found, inputs, family.targets(), tolerance=0.0)
    kinds = dict.fromkeys(str(module.features) for module in found.partition[:-1])
    return Outcome(family, most, "; ".join(kinds), max(differences.values(), default=0.0))


def most_modules(model: nn.Module, inputs: Any) -> int:
    """The largest K."""
    try:
        partition(model, 1 << 30, inputs)
    except UserError as error:
        _, _, rest = str(error).partition("1 to ")
        return int(rest.split(" ", 1)[0]) if rest else 0
    raise AssertionError("no model has that many blocks")


def rows(outcomes: list[Outcome]) -> list[str]:
    lines = ["| library | family | model | K up to | features | difference |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for each in outcomes:
        family = each.family
        size = "refused" if each.difference is None else f"{each.difference:.0e}"
        cells = (family.library, family.name, family.model, each.most, each.features, size)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def document(outcomes: list[Outcome]) -> str:
    refused = [each for each in outcomes if each.difference is None]
    return _DOCUMENT.format(
        trained=len(outcomes) - len(refused),
        families=len(outcomes),
        versions=", ".join(
            f"{name} {version(name)}" for name in ("torch", "torchvision", "timm", "transformers")
        ),
        rows="\n".join(rows(outcomes)),
        refused="\n".join(
            f"- {each.family.library}, {each.family.name}: {each.refused}" for each in refused
        ),
    )


_DOCUMENT = """\
# Architectures

{trained} of {families} families train in three modules; the others have no chain of three blocks,
and are refused with the reason below. `difference` is the largest of any parameter's gradient from
the naive implementation's, relative to the parameter's largest gradient, in float64; it is larger
where a model computes in float32 inside, or as a whole (Canine, Mixtral). "K up to" is that of the
tiny model named.

`python benchmarks/architectures.py --write`; {versions}.

{rows}

## Refused

{refused}

## How a model is cut

- One run on the example is traced. A cut is a submodule's output that no differentiable value
  reaches past: neither a skip connection nor a second input or a shared value that needs gradients.
- A block may return tuples, mappings or dataclasses. The tensor in it that was made last has to
  carry everything on; others may be None, need no gradient, or not reach the logits.
- A number K shares out blocks: the numbered parts of a model's lists (`layer1.0`,
  `encoder.layer.3`) where these hold most of its weights, and what lies between goes with the next.
  Elsewhere (VGG, GoogLeNet) blocks are the composite parts and the single layers around them.
- Weights that several modules share get the sum of their gradients, and count as done with the
  last of these modules. A submodule that runs more than once in a step (ALBERT's layer) is no cut.
- The batch comes first in every cut's output. Decoders of transformers keep the keys and values of
  all layers to the end of the forward; `config.use_cache = False` keeps memory flat.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="families; by default all")
    parser.add_argument("--write", action="store_true", help="write docs/architectures.md")
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # of libraries about their own models
    outcomes = []
    for family in FAMILIES:
        if given.names and family.name not in given.names:
            continue
        outcomes.append(outcome(family))
        print(rows(outcomes)[-1], outcomes[-1].refused, flush=True)
    if given.write:
        DOCS.write_text(document(outcomes))


if __name__ == "__main__":
    main()
