"""Into which K local modules a model is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from hpff.errors import UserError
from hpff.features import Features, Vectors
from hpff.tracing import Separator, Trace, trace

# Cuts of the published experiments: blocks in each stage -> K -> the last block of each module but
# the final one, as "stage.block" (InfoPro, AugLocal and HPFF's code; the paper's appendix).
_PUBLISHED: dict[tuple[int, ...], dict[int, str]] = {
    (5, 5, 5): {
        2: "2.1",
        3: "1.4 2.4",
        4: "1.2 2.1 3.0",
        8: "1.0 1.2 1.4 2.1 2.3 3.0 3.2",
    },
    (18, 18, 18): {
        2: "2.8",
        3: "1.17 2.17",
        4: "1.11 2.7 3.3",
        8: "1.4 1.11 2.0 2.7 2.14 3.3 3.10",
        16: "1.1 1.4 1.7 1.10 1.13 1.16 2.1 2.4 2.7 2.11 2.15 3.1 3.5 3.9 3.13",
        32: "1.1 1.2 1.4 1.5 1.7 1.9 1.11 1.13 1.14 1.16 1.17 "
        "2.1 2.2 2.4 2.5 2.7 2.9 2.11 2.13 2.14 2.16 2.17 "
        "3.1 3.3 3.4 3.6 3.7 3.9 3.11 3.13 3.15",
    },
    (3, 4, 23, 3): {4: "3.0 3.9 3.17", 8: "2.0 3.1 3.5 3.9 3.13 3.17 3.21"},
    (3, 8, 36, 3): {4: "3.0 3.9 3.17"},
}


@dataclass(frozen=True)
class LocalModule:
    """One local module.

    Attributes:
        index: j, from 1.
        cut: name of the submodule whose output ends it; None for the last module.
        submodules: the blocks that it runs, in order.
        block_shapes: of the output of each, the batch left out.
        parameter_names: of the backbone's parameters that it uses.
        parameters: how many numbers these are.
        output_shape: of its output on the example, the batch left out.
        dtype, device: of its output.
        features: what its output is: a map, tokens, a sequence or a vector.
        patches: n in force at its output (n×n patches, or n pieces of a sequence); 1 where PFF is
            off or does not fit.
        overwritten: whether the next module modifies the output in place.
    """

    index: int
    cut: str | None
    submodules: tuple[str, ...]
    block_shapes: tuple[tuple[int, ...], ...]
    parameter_names: tuple[str, ...]
    parameters: int
    output_shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    features: Features = field(default_factory=Vectors)
    patches: int = 1
    overwritten: bool = False


@dataclass(frozen=True)
class Partition(Sequence[LocalModule]):
    """The K local modules of a model, in order."""

    modules: tuple[LocalModule, ...]

    def __getitem__(self, index: Any) -> Any:
        return self.modules[index]

    def __len__(self) -> int:
        return len(self.modules)

    def __iter__(self) -> Iterator[LocalModule]:
        return iter(self.modules)

    def with_features(self, features: Sequence[Features], patches: Sequence[int]) -> Partition:
        """The same cut with the features and n in force at each module's output but the last."""
        described = tuple(
            replace(m, features=kind, patches=n)
            for m, kind, n in zip(self.modules, features, patches, strict=False)
        )
        return Partition((*described, self.modules[-1]))

    def __str__(self) -> str:
        rows = [("module", "ends after", "parameters", "output", "features", "patches")]
        for m in self.modules:
            shape = "×".join(map(str, m.output_shape))
            kind, n = str(m.features) if m.cut else "", str(m.patches)
            cut = f"{n}×{n}" if m.features.kind in ("map", "tokens") else n
            name = m.cut or "the head"
            rows.append((str(m.index), name, f"{m.parameters:,}", shape, kind, cut))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )


@dataclass(frozen=True)
class _Unit:
    """The smallest piece that a cut leaves whole: it ends at ``separator`` (the last: None)."""

    name: str
    shape: tuple[int, ...]
    separator: Separator | None


def partition(model: nn.Module, modules: int | Sequence[str], example: Any) -> Partition:
    """Cut ``model`` into local modules.

    Args:
        modules: K, or the names of the submodules after which to cut, in any order.
        example: a small input: a tensor, or a tuple or dict of forward's arguments.

    For a number K the published split is used where there is one; otherwise blocks are shared
    out evenly, later modules taking one more where K does not divide them. The stem (what runs
    before the first block) belongs to module 1, unless K is one more than the number of blocks:
    then it is a module of its own.

    Raises:
        UserError: K is more than the model's blocks allow; a name is unknown, does not run
            exactly once, or its output does not separate the model (a leak, which is named).
    """
    seen = trace(model, example)
    units = _units(model, seen)
    if isinstance(modules, bool) or not isinstance(modules, (int, Sequence)):
        raise UserError(f"modules is {modules!r}; expected a number or a list of submodule names")
    if isinstance(modules, int):
        cuts = _cuts_for_number(seen, units, modules)
    else:
        cuts = _cuts_by_name(model, seen, units, [modules] if isinstance(modules, str) else modules)
    return _describe(model, seen, units, cuts)


def _units(model: nn.Module, seen: Trace) -> list[_Unit]:
    """Stem, blocks and head: a unit ends where the next weight is about to be used.

    The layer that maps pooled features to classes joins the last block, unless the model is a
    plain ``nn.Sequential``, where each child that has a weight is a unit.
    """
    plain = isinstance(model, nn.Sequential)
    units: list[_Unit] = []
    start, name, shape = -1, "", seen.output_shape[1:]
    separators = [s for s in seen.separators if not plain or _is_child(s)]
    times = [*(s.time for s in separators), _FOREVER]
    for separator, next_time in zip(separators, times[1:], strict=True):
        if not name and seen.has_weight_between(start, separator.time):
            name, shape = _preferred_name(model, separator), separator.shape[1:]
        if name and seen.has_weight_between(separator.time, next_time):
            units.append(_Unit(name, shape, separator))
            start, name = separator.time, ""
    if units and not plain and _is_classifier(model, seen, start):
        return [*units[:-1], replace(units[-1], separator=None)]
    return [*units, _Unit(name or "head", shape, None)]


_FOREVER = 1 << 62


def _is_child(separator: Separator) -> bool:
    return any("." not in name for name in separator.names)


def _is_classifier(model: nn.Module, seen: Trace, start: int) -> bool:
    """Whether a single matrix is all that is used after ``start``."""
    weights = dict(model.named_parameters())
    return sum(weights[name].ndim >= 2 for name in seen.parameters_between(start, _FOREVER)) <= 1


def _preferred_name(model: nn.Module, separator: Separator) -> str:
    """Of the submodules that share an output, the outermost that is an item of a container."""
    items = [
        name
        for name in separator.names
        if isinstance(model.get_submodule(name.rpartition(".")[0]), (nn.Sequential, nn.ModuleList))
    ]
    return items[-1] if items else separator.names[-1]


def _cuts_for_number(seen: Trace, units: Sequence[_Unit], count: int) -> list[Separator]:
    if not 1 <= count <= len(units):
        leak = seen.find_leak(seen.leaking[0]) if len(units) < 3 and seen.leaking else None
        why = f"; a cut after {seen.leaking[0]!r} would leak: {leak}" if leak else ""
        raise UserError(
            f"modules={count}: this model can be cut into 1 to {len(units)} modules "
            f"({len(units)} blocks, the stem counted as one); lower modules or name the cuts{why}"
        )
    published = _published(units, count)
    if published is not None:
        return published
    ends = [unit.separator for unit in units if unit.separator is not None]
    if count == len(units):
        return ends
    blocks = len(units) - 1
    sizes = [blocks // count + (j >= count - blocks % count) for j in range(count)]
    position, cuts = 0, []
    for size in sizes[:-1]:
        position += size
        cuts.append(ends[position])
    return cuts


def _published(units: Sequence[_Unit], count: int) -> list[Separator] | None:
    """The published split, for a model whose blocks are named layer1.0, layer1.1, ..."""
    ends: dict[str, Separator | None] = {}
    stages: dict[str, int] = {}
    for unit in units[1:]:
        stage, _, block = unit.name.rpartition(".")
        if not (stage.removeprefix("layer").isdigit() and block.isdigit()):
            return None
        stages[stage] = stages.get(stage, 0) + 1
        ends[f"{stage.removeprefix('layer')}.{block}"] = unit.separator
    names = _PUBLISHED.get(tuple(stages.values()), {}).get(count)
    if names is None:
        return None
    return [end for name in names.split() if (end := ends[name]) is not None]


def _cuts_by_name(
    model: nn.Module, seen: Trace, units: Sequence[_Unit], names: Sequence[str]
) -> list[Separator]:
    cuts: dict[int, Separator] = {}
    for name in names:
        separator = seen.find(name) if isinstance(name, str) else None
        if separator is None:
            raise UserError(_why_not(model, seen, units, name))
        if separator.time in cuts:
            raise UserError(f"modules: {name!r} names the same cut twice; name each cut once")
        cuts[separator.time] = replace(separator, names=(name,))
    return [cuts[time] for time in sorted(cuts)]


def _why_not(model: nn.Module, seen: Trace, units: Sequence[_Unit], name: Any) -> str:
    known = dict(model.named_modules())
    working = [unit.name for unit in units if unit.separator is not None]
    listed = f"{', '.join(working[:6])}{', ...' if len(working) > 6 else ''}"
    advice = f"cuts that work: {listed or 'none but the whole model'}"
    if name not in known or not name:
        near = get_close_matches(str(name), [n for n in known if n], n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        return f"modules: the model has no submodule {name!r}; {guess}{advice}"
    leak = seen.find_leak(name)
    if leak is not None:
        return f"cannot cut after {name!r}: {leak}; {advice}"
    runs = seen.calls.get(name, 0)
    if runs != 1:
        return f"cannot cut after {name!r}: it runs {runs} times in a step, not once; {advice}"
    return f"cannot cut after {name!r}: its output ends the model or has no gradient; {advice}"


def _describe(
    model: nn.Module, seen: Trace, units: Sequence[_Unit], cuts: Sequence[Separator]
) -> Partition:
    numbers = {name: parameter.numel() for name, parameter in model.named_parameters()}
    bounds = [-1, *(cut.time for cut in cuts), _FOREVER]
    modules = []
    for index, (start, end) in enumerate(pairwise(bounds)):
        cut = cuts[index] if index < len(cuts) else None
        names = seen.parameters_between(start, end)
        inside = [
            u for u in units if start < (u.separator.time if u.separator else _FOREVER) <= end
        ]
        modules.append(
            LocalModule(
                index=index + 1,
                cut=_preferred_name(model, cut) if cut else None,
                submodules=tuple(u.name for u in inside) or ((cut.names[0],) if cut else ()),
                block_shapes=tuple(u.shape for u in inside),
                parameter_names=tuple(names),
                parameters=sum(numbers[name] for name in names),
                output_shape=(cut.shape if cut else seen.output_shape)[1:],
                dtype=cut.dtype if cut else seen.output_dtype,
                device=cut.device if cut else seen.output_device,
                overwritten=bool(cut and cut.overwritten),
            )
        )
    return Partition(tuple(modules))
