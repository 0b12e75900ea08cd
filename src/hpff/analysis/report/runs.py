"""What a finished run says of itself: numbers, curves, memory, recipe, machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hpff
from hpff.analysis.report.charts import Series, lines
from hpff.analysis.report.page import (
    Html,
    code,
    facts,
    figure,
    folded,
    grid,
    headline,
    section,
    subheading,
)
from hpff.errors import UserError
from hpff.recipes import files as recipe_files
from hpff.recipes.recipe import Recipe
from hpff.runs.run_directory import RunDirectory

MIB = 2**20
_CURVES_SHOWN = 8


@dataclass(frozen=True, eq=False)
class RunFacts:
    """A finished run, as far as a report needs it.

    Attributes:
        label: what it is called.
        recipe: what was run.
        report: what came out in the end.
        history: the metrics of each epoch.
        step_memory: bytes alive over a counted step; empty where none was.
    """

    label: str
    recipe: Recipe
    report: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    step_memory: Sequence[int] = ()

    @classmethod
    def read(cls, path: Path, label: str | None = None) -> RunFacts:
        """The run in a folder.

        Raises:
            UserError: it has not ended, or its files cannot be read.
        """
        directory = RunDirectory(path)
        recipe, report = directory.read_recipe(), directory.read_report()
        try:
            rows = directory.metrics.read_text(encoding="utf-8").splitlines()
            history = [json.loads(row) for row in rows]
        except (OSError, ValueError) as error:
            raise UserError(f"{directory.metrics}: cannot be read ({error})") from error
        name = label or f"{recipe.local.label()}, seed {recipe.seed}"
        return cls(name, recipe, report, history, directory.read_step_memory())

    def curve(self, key: str) -> list[tuple[float, float | None]]:
        """A metric over the epochs."""
        return [(entry["epoch"], entry.get(key)) for entry in self.history]


def numbers(run: RunFacts) -> Html:
    """What came out, in a few numbers."""
    report = run.report
    best = report.get("best_test_error_percent")
    pairs = {
        "test error, last epoch": f"{report['test_error_percent']:.2f} %",
        "best epoch": "–" if best is None else f"{best:.2f} %",
        "peak memory of a step": megabytes(report["peak_memory_bytes"]),
        "step time, median": f"{1000 * report['step_seconds']:.1f} ms",
        "epochs": str(report["epochs"]),
    }
    return headline(pairs)


def training(runs: Sequence[RunFacts]) -> Html:
    """How training went: errors, the loss of each level and module."""
    runs = runs[:_CURVES_SHOWN]
    many = len(runs) > 1
    errors = [
        Series(run.label if many else "test", run.curve("test_error_percent"), index)
        for index, run in enumerate(runs)
    ]
    errors += [
        Series("" if many else "training", run.curve("train_error_percent"), index, dashed=True)
        for index, run in enumerate(runs)
    ]
    totals = [
        Series(run.label if many else "", run.curve("loss"), index)
        for index, run in enumerate(runs)
    ]
    charts = [
        figure(
            "Error over the epochs",
            "Solid: test images; dashed: training images, augmented. Lower is better.",
            lines(errors, "epoch", "error, %"),
        ),
        figure(
            "Loss over the epochs",
            "The weighted sum of a step's losses; methods differ in its scale.",
            lines(totals, "epoch", "loss"),
        ),
    ]
    for run in runs:
        charts += [*_exits(run, named=many), *_levels(run, named=many)]
    said = "The last epoch counts; the best one is chosen by the test images and flatters."
    return section("Training", said, [grid(charts)])


def _exits(run: RunFacts, *, named: bool) -> list[Html]:
    """What every auxiliary network gets wrong as training goes on, where it was tested."""
    charts = []
    for level in ("independent", "cascade"):
        tested = [entry for entry in run.history if entry.get(f"{level}_errors")]
        if not tested:
            continue
        count = len(tested[-1][f"{level}_errors"])
        first = run_modules(run) - count + 1
        chosen = sorted({round(i * (count - 1) / 5) for i in range(6)})
        series = [
            Series(
                f"module {first + place}",
                [(entry["epoch"], entry[f"{level}_errors"][place]) for entry in tested],
                index,
            )
            for index, place in enumerate(chosen)
        ]
        title = f"{level.capitalize()} exits over the epochs" + (f": {run.label}" if named else "")
        said = (
            "Test error of the auxiliary networks at some modules; the last is the network's own."
        )
        charts.append(figure(title, said, lines(series, "epoch", "error, %")))
    return charts


def _levels(run: RunFacts, *, named: bool) -> list[Html]:
    """The loss of each module by its level, the first and the last epoch among the lines."""
    charts = []
    last = len(run.history) - 1
    chosen = sorted({0, last // 4, last // 2, last}) if run.history else []
    for key, level in (("independent_losses", "independent"), ("cascade_losses", "cascade")):
        if not run.history or len(run.history[-1].get(key) or []) < 2:
            continue
        count = len(run.history[-1][key])
        first = run_modules(run) - count + 1
        series = [
            Series(
                f"epoch {run.history[at]['epoch']}",
                list(enumerate(run.history[at][key], first)),
                index,
            )
            for index, at in enumerate(chosen)
        ]
        title = f"{level.capitalize()} loss by module" + (f": {run.label}" if named else "")
        charts.append(
            figure(
                title,
                "The training loss at the end of each module, early epochs to late ones; the last "
                "module's is the network's own.",
                lines(series, "module", "loss"),
            )
        )
    return charts


def run_modules(run: RunFacts) -> int:
    """K, as far as the metrics show it."""
    counted = [len(run.history[-1].get(key) or []) for key in _LEVELS] if run.history else [1]
    return max(run.recipe.local.module_count or 1, *counted)


_LEVELS = ("independent_losses", "cascade_losses")


def memory(runs: Sequence[RunFacts]) -> Html | None:
    """Memory over one step, where it was counted."""
    counted = [run for run in runs if run.step_memory][:_CURVES_SHOWN]
    if not counted:
        return None
    series = []
    for index, run in enumerate(counted):
        curve = run.step_memory
        share = 100 / max(len(curve) - 1, 1)
        points = [(share * at, size / MIB) for at, size in enumerate(curve)]
        series.append(Series(run.label if len(counted) > 1 else "", points, index))
    chart = figure(
        "Memory over the step",
        "All tensors alive, from a step's first to its last allocation or release; its highest "
        "point is what a device must hold.",
        lines(
            series,
            "allocations and releases of a step, %",
            "MiB",
            from_zero=True,
            marks=False,
            filled=len(counted) == 1,
        ),
    )
    said = (
        "Counted tensor by tensor in the second step of the run: parameters, gradients, optimizer"
    )
    return section("Memory", said + " states, activations and the batch.", [grid([chart])])


def recipe_and_machine(runs: Sequence[RunFacts]) -> Html:
    """Every setting, and where it ran."""
    parts: list[Html] = []
    for run in runs:
        parts.append(folded(f"Recipe: {run.label}", [code(recipe_files.dump(run.recipe).rstrip())]))
    machines = {json.dumps(run.report.get("machine"), sort_keys=True): run for run in runs}
    for run in machines.values():
        name = "Machine" if len(machines) == 1 else f"Machine of {run.label}"
        where = dict(run.report.get("machine") or {})
        parts += [subheading(name), facts({**where, "hpff": hpff.__version__})]
    return section("Recipe and environment", "", parts)


def megabytes(count: int) -> str:
    """Bytes as MiB or GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / MIB:.1f} MiB"
