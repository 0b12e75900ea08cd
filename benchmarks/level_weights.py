"""How should the two levels be weighted? A sweep with DGL+HPFF on CIFAR-10.

    python benchmarks/level_weights.py --out runs/level_weights

Trains benchmarks/cifar10_short.yaml once for each pair of weights and seed, and writes
level_weights.md. Finished runs are kept, so that the sweep can be stopped and started again.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from short_runs import hpff_error

from hpff.training import machine, recipe_files
from hpff.training.recipe import Recipe

HERE = Path(__file__).parent
PAIRS = [(1.0, 1.0), (0.5, 1.0), (0.3, 1.0), (0.1, 1.0), (0.03, 1.0), (0.001, 0.999), (1.0, 0.5)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("overrides", nargs="*", help="key=value, as for hpff train")
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    base = recipe_files.load(str(HERE / "cifar10_short.yaml"), given.overrides)
    errors: dict[tuple[float, float], list[float]] = {}
    for seed in seeds:
        for pair in PAIRS:
            errors.setdefault(pair, []).append(_error(base, pair, seed, given.out))
            print(f"{pair} seed {seed}: {errors[pair][-1]:.2f} %", time.strftime("%X"), flush=True)
    lines = ["| independent | cascade | test error, % | spread |", "| --- | --- | --- | --- |"]
    for (independent, cascade), found in errors.items():
        spread = f"{statistics.stdev(found):.2f}" if len(found) > 1 else "-"
        lines.append(
            f"| {independent:.3g} | {cascade:.3g} | {statistics.fmean(found):.2f} | {spread} |"
        )
    table = "\n".join(lines)
    (given.out / "level_weights.md").write_text(f"{table}\n\n{machine.describe()}\n")
    print(table)


def _error(base: Recipe, pair: tuple[float, float], seed: int, out: Path) -> float:
    weights = {"independent_weight": pair[0], "cascade_weight": pair[1]}
    return hpff_error(base, weights, seed, out / f"{pair[0]:.3g}-{pair[1]:.3g}-seed{seed}")


if __name__ == "__main__":
    main()
