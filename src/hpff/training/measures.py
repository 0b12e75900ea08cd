"""What a table shows of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpff.training.recipe import Recipe


@dataclass(frozen=True)
class Subject:
    """A run: its recipe, its folder, and its report, which is empty if nothing was trained."""

    recipe: Recipe
    path: Path
    report: Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """A number of a run; `read` gives None where a run has none.

    Attributes:
        digits: after the point.
        trains: whether the run must have been trained.
        slow: whether reading takes long enough to keep the number in a file.
    """

    title: str
    digits: int
    read: Callable[[Subject], float | None]
    trains: bool = True
    slow: bool = False

    def shown(self, value: float | None, *, sign: bool = False) -> str:
        """A number of this measure as text; `–` for none."""
        if value is None:
            return "–"
        return f"{value:{'+' if sign else ''}.{self.digits}f}"


def _step_memory(run: Subject) -> float:
    from hpff.training.rehearsal import rehearse

    return rehearse(run.recipe) / 2**30


MEASURES = {
    "error": Measure("test error, %", 2, lambda run: run.report["test_error_percent"]),
    "top5": Measure("top-5 error, %", 2, lambda run: run.report["test_top5_error_percent"]),
    "accuracy": Measure("accuracy, %", 2, lambda run: 100 - run.report["test_error_percent"]),
    "memory": Measure("memory, GiB", 2, lambda run: run.report["peak_memory_bytes"] / 2**30),
    "minutes": Measure("training, minutes", 1, lambda run: run.report["train_seconds"] / 60),
    "step_memory": Measure("memory, GiB", 2, _step_memory, trains=False, slow=True),
}
