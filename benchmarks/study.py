"""What does local learning need to learn as well as backprop? One table of settings and costs.

    python benchmarks/study.py --out runs/study [--settings bp,dgl,...] [--seeds 0,1,2]
                               [--recipe benchmarks/study.yaml] [--times] [--write] [KEY=VALUE ...]

Trains the recipe with every setting and seed: error of the last epoch on training images that were
held out, in percent. Beside it the peak memory of a step, planned, and its arithmetic over
backprop's; with --times also measured step times over backprop's, all settings in turns. Finished
runs are kept, so that the study can be stopped and gone on with. --write puts the table into
benchmarks/study.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from pathlib import Path

import torch
from short_runs import Quiet

from hpff import LocalLearner, models
from hpff.experiments import comparison
from hpff.memory import ArithmeticCounter, Strategy, Workload, bench, plan
from hpff.recipes import files as recipe_files
from hpff.recipes.recipe import Recipe
from hpff.runs import machine
from hpff.training import loop

HERE = Path(__file__).parent
# A label, and keys of the recipe. In the order in which they were tried.
SETTINGS: dict[str, tuple[str, ...]] = {
    "bp": ("bp",),
    "dgl": ("dgl",),
    "dgl+hpff": ("dgl+hpff",),
    "dgl+hilo": ("dgl+hilo",),
    "auglocal": ("auglocal",),
    "auglocal-pool2": ("auglocal", "auxiliary_pool=2"),
    "auglocal+hilo-pool2": ("auglocal+hilo", "auxiliary_pool=2"),
    "auglocal+hilo-pool4": ("auglocal+hilo", "auxiliary_pool=4"),
    "auglocal4+hilo-pool4": ("auglocal+hilo", "auxiliary_pool=4", "method.depth=4"),
    "auglocal8+hilo-pool4": ("auglocal+hilo", "auxiliary_pool=4", "method.depth=8"),
    "auglocal8-pool4": ("auglocal", "auxiliary_pool=4", "method.depth=8"),
    "auglocal4+hilo-pool2": ("auglocal+hilo", "auxiliary_pool=2", "method.depth=4"),
    "auglocal+k3-pool4": ("auglocal+hilo", "auxiliary_pool=4", "cascade=3"),
    "auglocal+cl-pool2": ("auglocal+cl", "auxiliary_pool=2"),
    "auglocal+cl-pool4": ("auglocal+cl", "auxiliary_pool=4"),
    "man+hilo-pool2": ("man+hilo", "auxiliary_pool=2"),
    "man2+hilo-pool2": ("man+hilo", "auxiliary_pool=2", "method.depth=2"),
    "manpp+hilo-pool2": ("man+hilo", "auxiliary_pool=2", "method.twin=false"),
    "manpp2+hilo-pool2": (
        "man+hilo",
        "auxiliary_pool=2",
        "method.twin=false",
        "method.depth=2",
    ),
    "manpp3+hilo-pool2": (
        "man+hilo",
        "auxiliary_pool=2",
        "method.twin=false",
        "method.depth=3",
    ),
}


@dataclasses.dataclass
class Row:
    name: str
    recipe: Recipe
    errors: dict[int, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--recipe", default=str(HERE / "study.yaml"))
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--times", action="store_true", help="measure step times")
    parser.add_argument("--write", action="store_true", help="write benchmarks/study.md")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE, as for hpff train")
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    rows = [
        Row(name, _recipe(name, given.recipe, given.overrides), {})
        for name in given.settings.split(",")
    ]
    for seed in seeds:
        for row in rows:
            run = dataclasses.replace(row.recipe, seed=seed)
            report = loop.go_on(run, given.out / f"{row.name}-seed{seed}", Quiet())
            row.errors[seed] = float(report["test_error_percent"])
            print(
                f"{row.name} seed {seed}: {row.errors[seed]:.2f} %", time.strftime("%X"), flush=True
            )
    text = f"{_table(rows, measured=given.times)}\n\n{machine.describe()}\n"
    print(text)
    if given.write:
        (HERE / "study.md").write_text(f"{__doc__}\n{text}")


def _recipe(name: str, file: str, overrides: list[str]) -> Recipe:
    label, *changes = SETTINGS[name]
    method = label.partition("+")[0]
    base = recipe_files.load(file, [f"method.name={method}", *changes, *overrides])
    return comparison.recipe_for(label, base, seed=0)


def _table(rows: list[Row], *, measured: bool) -> str:
    base = rows[0].recipe
    workload = Workload(
        lambda: models.create(base.model.name, 10, **base.model.settings), base.local.modules
    )
    strategies = [Strategy(row.recipe.local) for row in rows]
    planned = plan(workload, batch=base.batch_size, strategies=strategies).rows
    times = [""] * len(rows)
    if measured:
        raced = bench(workload, batch=base.batch_size, strategies=strategies, rounds=7).rows
        times = [f"{row.quartiles()[1]:.2f}" for row in raced]
    lines = [
        "| setting | held-out error, % | over bp, paired | peak, MiB | arithmetic | step |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    arithmetic = [_arithmetic(row.recipe) for row in rows]
    for row, plan_row, count, step in zip(rows, planned, arithmetic, times, strict=True):
        gaps = [error - rows[0].errors[seed] for seed, error in row.errors.items()]
        lines.append(
            f"| {row.name} | {_spread(list(row.errors.values()))} | {_spread(gaps)} "
            f"| {(plan_row.peak or 0) / 2**20:.0f} | {count / arithmetic[0]:.2f} | {step} |"
        )
    return "\n".join(lines)


def _arithmetic(recipe: Recipe) -> int:
    images, targets = torch.randn(8, 3, 32, 32), torch.arange(8)
    model = models.create(recipe.model.name, 10, **recipe.model.settings)
    learner = LocalLearner.from_settings(model, recipe.local, example=images[:2], num_classes=10)
    with ArithmeticCounter() as counter:
        learner.backward(images, targets)
    return counter.total


def _spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"


if __name__ == "__main__":
    main()
