"""What a table shows of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hpff.data import OUTLINES
from hpff.recipes.recipe import Recipe

Matching = Literal["name", "position"]


@dataclass(frozen=True)
class Subject:
    """A run: its recipe, its folder, and its report, which is empty if nothing was trained.

    `data` maps data sets that it is tested on to others that stand for them.
    """

    recipe: Recipe
    path: Path
    report: Mapping[str, Any]
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measure:
    """A number of a run; `read` gives None where a run has none.

    Attributes:
        digits: after the point.
        trains: whether the run must have been trained.
        slow: whether reading takes long enough to keep the number in a file.
        tested_on: the data set on which reading tests the run, if it does.
    """

    title: str
    digits: int
    read: Callable[[Subject], float | None]
    trains: bool = True
    slow: bool = False
    tested_on: str = ""

    def shown(self, value: float | None, *, sign: bool = False) -> str:
        """A number of this measure as text; `–` for none."""
        if value is None:
            return "–"
        return f"{value:{'+' if sign else ''}.{self.digits}f}"


def _step_memory(run: Subject) -> float:
    from hpff.training.dry_run import rehearse

    return rehearse(run.recipe) / 2**30


def _stl10(title: str, matching: Matching) -> Measure:
    """The accuracy of a run on CIFAR-10 on the test images of STL-10."""

    def read(run: Subject) -> float:
        from hpff.experiments.transfer import transfer
        from hpff.runs.finished_run import FinishedRun

        names = OUTLINES["cifar10"].class_names
        dataset = run.data.get("stl10", "stl10")
        treatment = "auto" if dataset == "stl10" else "stl10"
        found = transfer(
            FinishedRun.read(run.path),
            dataset,
            matching=matching,
            class_names=names,
            treatment=treatment,
        )
        return 100 - found.score.error

    return Measure(title, 2, read, slow=True, tested_on="stl10")


MEASURES = {
    "error": Measure("test error, %", 2, lambda run: run.report["test_error_percent"]),
    "top5": Measure("top-5 error, %", 2, lambda run: run.report["test_top5_error_percent"]),
    "accuracy": Measure("accuracy, %", 2, lambda run: 100 - run.report["test_error_percent"]),
    "memory": Measure("memory, GiB", 2, lambda run: run.report["peak_memory_bytes"] / 2**30),
    "minutes": Measure("training, minutes", 1, lambda run: run.report["train_seconds"] / 60),
    "stl10_position": _stl10("STL-10, labels by position, %", "position"),
    "stl10_name": _stl10("STL-10, 9 classes by name, %", "name"),
    "step_memory": Measure("memory, GiB", 2, _step_memory, trains=False, slow=True),
}
