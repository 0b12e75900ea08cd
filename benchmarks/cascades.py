"""How far should cascades reach? Memory, work and error of k and of reaches chosen by module.

    python benchmarks/cascades.py [--write] [--train OUT --seeds 0,1]

"auto" takes at each module the longest cascade that fits into the memory that k = 2 needs anyway
(hpff.engine.reach.within), "auto, twice" into twice that. "spaced" takes the same lengths, but lets
a cascade end only where the next one up begins: no module is carried through twice, so that it
costs what k = 2 does. Peak memory is planned at batch 1024, as in memory.py; "passes" are the VJPs
for input gradients, for each module. --train adds the test error of benchmarks/cifar10_short.yaml
(finished runs are kept), --write puts the tables into benchmarks/cascades.md.

The errors are of one seed, 0, of which backprop has 35.13; seeds of one row differ by one to two
points. So k = 8 of 10 modules, five points below k = 2, is a difference; k = 3, "auto" and
"spaced", all within a point of k = 2, are none. They were trained with auxiliary_weight=level,
before the auxiliary networks had a rate of their own, and not again since.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from memory_tables import gib, peak, table, write
from short_runs import error_of

from hpff import models
from hpff.cutting.local_modules import Partition
from hpff.engine.reach import within
from hpff.memory import Strategy, Workload, plan
from hpff.recipes import files as recipe_files

HERE = Path(__file__).parent
NETWORKS = {"resnet32": 16, "resnet110": 55}
RULES = ("k = 2", "k = 3", "k = 4", "k = 8", "auto", "auto, twice", "spaced")


def lengths(rule: str, cut: Partition) -> tuple[int, ...]:
    """For each module the length of the cascade that ends there."""
    sizes = [module.saved + module.output_bytes for module in cut]
    if rule.startswith("k"):
        k = int(rule.removeprefix("k = "))
        return tuple(k if end >= k else 1 for end in range(1, len(cut) + 1))
    dense = within(sizes, 2.0 if rule == "auto, twice" else 1.0).lengths
    return spaced(dense) if rule == "spaced" else dense


def spaced(dense: Sequence[int]) -> tuple[int, ...]:
    """Of cascades at every module those that share one module with the next, from the top."""
    kept, end = [1] * len(dense), len(dense)
    while end > 1:
        kept[end - 1] = dense[end - 1]
        end -= dense[end - 1] - 1
    return tuple(kept)


def memory_table() -> str:
    rows = []
    for network, modules in NETWORKS.items():
        workload = Workload(network, modules)
        cut = plan(workload, batch=2, strategies=[Strategy.of("dgl")]).partition
        for rule in RULES:
            chosen = lengths(rule, cut)
            strategy = Strategy.of("dgl", cascade=chosen, patches=2)
            size = gib(peak(plan(workload, batch=1024, strategies=[strategy]).rows[0]))
            passes = sum(length - 1 for length in chosen) / len(cut)
            name = f"{network}, K = {modules}"
            rows.append((name, rule, size, f"{passes:.2f}", max(chosen)))
    return table(("network", "reach", "peak, GiB", "passes", "longest"), rows)


def error_table(out: Path, seeds: Sequence[int]) -> str:
    rows = []
    base = recipe_files.load(str(HERE / "cifar10_short.yaml"))
    workload = Workload(lambda: models.create("resnet20", width=8), modules=10)
    cut = plan(workload, batch=2, strategies=[Strategy.of("dgl")]).partition
    for rule in RULES:
        chosen = lengths(rule, cut)
        errors = [
            error_of("dgl+hpff", base, {"cascade": chosen}, seed, out / f"{rule}, seed {seed}")
            for seed in seeds
        ]
        spread = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
        shown = " ".join(map(str, chosen))
        rows.append((rule, shown, f"{statistics.fmean(errors):.2f}{spread}", len(seeds)))
        print(*rows[-1], flush=True)
    return table(("reach", "lengths", "test error, %", "seeds"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=Path, metavar="OUT", help="train too, into this folder")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--write", action="store_true", help="write benchmarks/cascades.md")
    given = parser.parse_args()
    tables = [memory_table()]
    print(tables[0], flush=True)
    if given.train:
        seeds = [int(seed) for seed in given.seeds.split(",")]
        tables.append(error_table(given.train, seeds))
    if given.write:
        write(__file__, __doc__, *tables)


if __name__ == "__main__":
    main()
