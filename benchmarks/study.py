"""What does local learning need to learn as well as backprop? One table of settings and costs.

    python benchmarks/study.py --out runs/study [--settings bp,dgl,...] [--seeds 0,1,2]
                               [--recipe benchmarks/study.yaml] [--finished] [--times] [--write]
                               [KEY=VALUE ...]

Trains the recipe with every setting and seed: error of the last epoch on training images that were
held out, in percent, and how far it is above backprop's of the same seeds. Beside it what a step
takes, planned: peak memory, and arithmetic over backprop's, without recomputation, with "once" and
with "repeatedly", which give the same bits. "bp, checkpoints" is gradient checkpointing at its
best. A second table has the error of every auxiliary network as an exit, from the first module that
has one to the last, and the network's own, and of the mean of their probabilities. With --times
also measured step times over backprop's, all settings in turns. Finished runs are kept, so that the
study can be stopped and gone on with; --finished trains nothing more. --write puts the tables into
benchmarks/study.md, above what is said there, and a picture of error against cost into study.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import study_variant  # noqa: F401 - registers a method
from matplotlib.figure import Figure
from short_runs import Quiet

from hpff import models
from hpff.analysis.exits import exit_errors
from hpff.analysis.subjects import Pass
from hpff.engine.recomputation import Recompute
from hpff.experiments import comparison
from hpff.memory import Strategy, Workload, bench
from hpff.memory.rehearsal import Rehearsal, Stage, best_checkpointing
from hpff.recipes import files as recipe_files
from hpff.recipes.recipe import Recipe
from hpff.runs import machine
from hpff.training import loop
from hpff.training.setup import Parts

HERE = Path(__file__).parent
_ACCURATE = ("auglocal+cl", "method.depth=4", "cascade=4", "cascade_stride=3")
_VARIANT = ("variant+cl", "method.base=auglocal", *_ACCURATE[1:])
_PATCHED = ("variant+hilo", "method.base=dgl", "method.patches=2", "method.fuse=outputs")
# A label, and keys of the recipe. In the order in which they were tried.
SETTINGS: dict[str, tuple[str, ...]] = {
    "bp": ("bp",),
    "dgl": ("dgl",),
    "dgl+hpff": ("dgl+hpff",),
    "dgl+hilo": ("dgl+hilo",),
    "predsim": ("predsim",),
    "predsim+hpff": ("predsim+hpff",),
    "infopro": ("infopro",),
    "infopro+hpff": ("infopro+hpff",),
    "man": ("man",),
    "man+hpff": ("man+hpff",),
    "auglocal": ("auglocal",),
    "auglocal+hpff": ("auglocal+hpff",),
    "auglocal-pool2": ("auglocal", "auxiliary_pool=2"),
    "auglocal+hilo-pool2": ("auglocal+hilo", "auxiliary_pool=2"),
    "auglocal+hilo-pool4": ("auglocal+hilo", "auxiliary_pool=4"),
    "auglocal4+hilo-pool4": ("auglocal+hilo", "auxiliary_pool=4", "method.depth=4"),
    "auglocal8+hilo-pool4": ("auglocal+hilo", "auxiliary_pool=4", "method.depth=8"),
    "auglocal8-pool4": ("auglocal", "auxiliary_pool=4", "method.depth=8"),
    "auglocal4+hilo-pool2": ("auglocal+hilo", "auxiliary_pool=2", "method.depth=4"),
    "auglocal+k3-pool4": ("auglocal+hilo", "auxiliary_pool=4", "cascade=3"),
    "auglocal+cl-pool2": ("auglocal+cl", "auxiliary_pool=2"),
    "auglocal4+cl-spaced3-pool2": (
        "auglocal+cl",
        "auxiliary_pool=2",
        "method.depth=4",
        "cascade=3",
        "cascade_stride=2",
    ),
    "auglocal4+cl-spaced4-pool2": (
        "auglocal+cl",
        "auxiliary_pool=2",
        "method.depth=4",
        "cascade=4",
        "cascade_stride=3",
    ),
    "auglocal+cl-pool4": ("auglocal+cl", "auxiliary_pool=4"),
    "auglocal8+cl-spaced4-pool2": (
        "auglocal+cl",
        "auxiliary_pool=2",
        "method.depth=8",
        "cascade=4",
        "cascade_stride=3",
    ),
    "auglocal4+cl-spaced4": _ACCURATE,
    "bp-smooth": ("bp", "label_smoothing=0.1"),
    "auglocal4+cl-spaced4-smooth": (*_ACCURATE, "label_smoothing=0.1"),
    "auglocal4+cl-spaced4-rate0.3": (*_ACCURATE, "auxiliary_weight=0.3"),
    "auglocal4+cl-spaced4-rate3": (*_ACCURATE, "auxiliary_weight=3"),
    "auglocal4+cl+pff-spaced4": ("auglocal+cl+pff", *_ACCURATE[1:]),
    "auglocal4+hilo-spaced4": ("auglocal+hilo", *_ACCURATE[1:]),
    "auglocal4+cl-spaced4-rate6": (*_ACCURATE, "auxiliary_weight=6"),
    "auglocal4+cl-short-first": (*_ACCURATE[:2], "cascade=[1,1,3,1,1,4,1,1,1,5]"),
    "auglocal4+cl-long-first": (*_ACCURATE[:2], "cascade=[1,1,1,1,5,1,1,4,1,3]"),
    "auglocal+cl-long-first": ("auglocal+cl", "cascade=[1,1,1,1,5,1,1,4,1,3]"),
    "auglocal4+cl-long-first16": (  # for 16 modules
        *_ACCURATE[:2],
        "cascade=[1,1,1,1,1,6,1,1,1,5,1,1,4,1,1,4]",
    ),
    # Every loss trains all modules before it, as deep supervision does.
    "auglocal4+cl-whole": (*_ACCURATE[:2], "cascade=[1,1,1,4,1,1,7,1,1,10]"),
    "auglocal4+cl-spaced4-rising": (*_VARIANT, "method.slope=1"),
    "auglocal4+cl-spaced4-falling": (*_VARIANT, "method.slope=-1"),
    "auglocal4+cl-spaced4-patch-losses": (*_VARIANT, "method.patches=2"),
    "bp-rate3": ("bp", "optimizer.lr=0.3"),
    "dgl+hilo-patch-losses": ("variant+hilo", "method.base=dgl", "method.patches=2"),
    "dgl+hilo-rising": ("variant+hilo", "method.base=dgl", "method.slope=0.8"),
    "dgl+hilo-falling": ("variant+hilo", "method.base=dgl", "method.slope=-0.8"),
    "dgl+hpff-first-stage": (*_PATCHED, "method.last=4"),
    "dgl+hpff-later-stages": (*_PATCHED, "method.first=5"),
    "dgl+hpff-one-norm": ("dgl+hpff", "patch_norm=together"),
    "auglocal4+cl+pff-spaced4-one-norm": (
        "auglocal+cl+pff",
        *_ACCURATE[1:],
        "patch_norm=together",
    ),
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
    """A setting.

    Attributes:
        name: of the setting.
        recipe: with it.
        errors: by seed.
        costs: peak bytes and arithmetic over backprop's, of each way of recomputation.
        exits: metrics of each seed's last epoch, those of its exits among them.
    """

    name: str
    recipe: Recipe
    errors: dict[int, float]
    costs: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    exits: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def gaps(self, base: Row) -> list[float]:
        """How far the errors are above those of the same seeds."""
        return [error - base.errors[seed] for seed, error in self.errors.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--recipe", default=str(HERE / "study.yaml"))
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--finished", action="store_true", help="train nothing: what there is")
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
            folder = given.out / f"{row.name}-seed{seed}"
            if not given.finished:
                recipe = dataclasses.replace(row.recipe, seed=seed)
                loop.go_on(recipe, folder, Quiet(), _exits)
            elif not (folder / "report.json").exists():
                continue
            report = json.loads((folder / "report.json").read_text())
            row.errors[seed] = float(report["test_error_percent"])
            row.exits.append(json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1]))
            print(
                f"{row.name} seed {seed}: {row.errors[seed]:.2f} %", time.strftime("%X"), flush=True
            )
    rows = [row for row in rows if row.errors]
    table, picture = _table(rows, measured=given.times)
    text = f"{table}\n\n{_exits_table(rows)}\n\n{machine.describe()}\n"
    print(text)
    if given.write:
        file = HERE / "study.md"
        said = file.read_text().partition("\n\n## ")[2]
        file.write_text(f"{__doc__}\n{text}" + (f"\n## {said}" if said else ""))
        picture.savefig(HERE / "study.png", dpi=120)


def _exits(parts: Parts) -> dict[str, Any]:
    return exit_errors(parts.learner, Pass(parts.test))


def _exits_table(rows: list[Row]) -> str:
    """Where the loss arises: errors of auxiliary networks, the network's own head last."""
    lines = [
        "| setting | level | held-out error of its exits, % | of all together |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        for level in ("independent", "cascade"):
            key = f"{level}_errors"
            seeds = [found[key] for found in row.exits if found.get(key)]
            means = [statistics.fmean(errors) for errors in zip(*seeds, strict=True)]
            shown = ", ".join(f"{mean:.2f}" for mean in means)
            together = [found.get("ensemble_error_percent") for found in row.exits]
            mean = _spread([error for error in together if error is not None]) if means else ""
            lines += [f"| {row.name} | {level} | {shown} | {mean} |"] if means else []
    return "\n".join(lines)


def _recipe(name: str, file: str, overrides: list[str]) -> Recipe:
    label, *changes = SETTINGS[name]
    method = label.partition("+")[0]
    base = recipe_files.load(file, [f"method.name={method}", *changes, *overrides])
    return comparison.recipe_for(label, base, seed=0)


def _table(rows: list[Row], *, measured: bool) -> tuple[str, Figure]:
    base = rows[0].recipe
    workload = Workload(
        lambda: models.create(base.model.name, 10, **base.model.settings), base.local.modules
    )
    times = [""] * len(rows)
    if measured:
        strategies = [Strategy(row.recipe.local) for row in rows]
        raced = bench(workload, batch=base.batch_size, strategies=strategies, rounds=7).rows
        times = [f"{row.quartiles()[1]:.2f}" for row in raced]
    stage = Stage(workload)
    whole = Rehearsal(stage, Strategy(base.local)).cost(base.batch_size)[1]
    best, _ = best_checkpointing(stage, base.batch_size)
    checkpoints = Row("bp, checkpoints", base, rows[0].errors)
    for row in rows:
        row.costs = _costs([Rehearsal(stage, way) for way in _ways(row)], base.batch_size, whole)
    checkpoints.costs = _costs([best], base.batch_size, whole)
    lines = [
        "| setting | held-out error, % | over bp, paired | peak, MiB | arithmetic | step |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_line(row, rows[0], step) for row, step in zip(rows, times, strict=True)),
    ]
    lines.insert(3, f"| bp, checkpoints | | | {_shown(checkpoints.costs)} | |")
    return "\n".join(lines), _picture([*rows, checkpoints], rows[0])


def _line(row: Row, base: Row, step: str) -> str:
    spread = f"{_spread(list(row.errors.values()))} | {_spread(row.gaps(base))}"
    return f"| {row.name} | {spread} | {_shown(row.costs)} | {step} |"


def _picture(rows: list[Row], base: Row) -> Figure:
    """Error over backprop's against memory, and against arithmetic."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    memory, time = figure.subplots(1, 2, sharey=True)
    for row, color in zip(rows, cycle(matplotlib.color_sequences["tab20"])):
        gap = statistics.fmean(row.gaps(base))
        marks = {"label": row.name, "color": color, "marker": "o", "markersize": 4}
        memory.plot([peak / 2**20 for peak, _ in row.costs], [gap] * len(row.costs), **marks)
        time.plot([count for _, count in row.costs], [gap] * len(row.costs), **marks)
    memory.set(xlabel="peak memory, MiB", ylabel="held-out error over backprop's, points")
    time.set(xlabel="arithmetic over backprop's")
    for axes in (memory, time):
        axes.grid(alpha=0.3)
    figure.legend(*time.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure


def _ways(row: Row) -> list[Strategy]:
    if row.recipe.local.is_backprop:
        return [Strategy(row.recipe.local)]
    hows: tuple[Recompute, ...] = ("never", "once", "repeatedly")
    return [Strategy(row.recipe.local).with_settings(recompute=how) for how in hows]


def _costs(rehearsals: list[Rehearsal], batch: int, whole: int) -> list[tuple[int, float]]:
    counted = [each.cost(batch) for each in rehearsals]
    return [(peak, count / whole) for peak, count in counted]


def _shown(costs: list[tuple[int, float]]) -> str:
    peaks = " / ".join(f"{peak / 2**20:.0f}" for peak, _ in costs)
    return f"{peaks} | {' / '.join(f'{count:.2f}' for _, count in costs)}"


def _spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"


if __name__ == "__main__":
    main()
