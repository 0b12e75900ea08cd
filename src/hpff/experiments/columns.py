"""What a table shows of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpff.data import PUBLISHED_DATASETS
from hpff.data.classes import Matching
from hpff.errors import UserError
from hpff.recipes.recipe import Recipe


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
class Column:
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


def _reported(key: str) -> Callable[[Subject], float]:
    """A number of the run's report."""

    def read(run: Subject) -> float:
        value = run.report.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise UserError(
                f"{run.path / 'report.json'}: has no number for {key}; delete it, and the same "
                "command writes it anew"
            )
        return value

    return read


def _scaled(key: str, read: Callable[[float], float]) -> Callable[[Subject], float]:
    """What `read` makes of a number of the run's report."""
    reported = _reported(key)
    return lambda run: read(reported(run))


def _step_memory(run: Subject) -> float:
    from hpff.training.dry_run import rehearse

    return rehearse(run.recipe) / _GIB


def _stl10(title: str, matching: Matching) -> Column:
    """The accuracy of a run on CIFAR-10 on the test images of STL-10."""

    def read(run: Subject) -> float:
        from hpff.experiments.transfer import transfer
        from hpff.runs.finished_run import FinishedRun

        names = PUBLISHED_DATASETS["cifar10"].class_names
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

    return Column(title, 2, read, slow=True, tested_on="stl10")


def _multi_scale(title: str, *, flip: bool) -> Column:
    """The mIoU of a run on its own test images, at several scales."""

    def read(run: Subject) -> float | None:
        from hpff.experiments.segmentation import evaluate_pixels
        from hpff.runs.finished_run import FinishedRun
        from hpff.training.inference import MULTI_SCALE, Inference

        inference = Inference(MULTI_SCALE, flip=flip)
        return evaluate_pixels(FinishedRun.read(run.path), inference=inference).score.miou

    return Column(title, 2, read, slow=True)


_GIB = 2**30
COLUMNS = {
    "error": Column("test error, %", 2, _reported("test_error_percent")),
    "top5": Column("top-5 error, %", 2, _reported("test_top5_error_percent")),
    "accuracy": Column("accuracy, %", 2, _scaled("test_error_percent", lambda x: 100 - x)),
    "memory": Column("memory, GiB", 2, _scaled("peak_memory_bytes", lambda x: x / _GIB)),
    "minutes": Column("training, minutes", 1, _scaled("train_seconds", lambda x: x / 60)),
    "stl10_position": _stl10("STL-10, labels by position, %", "position"),
    "stl10_name": _stl10("STL-10, 9 classes by name, %", "name"),
    "miou": Column("mIoU, single scale, %", 2, _reported("test_miou_percent")),
    "miou_ms": _multi_scale("mIoU, multi scale, %", flip=False),
    "miou_ms_flip": _multi_scale("mIoU, multi scale and flip, %", flip=True),
    "step_memory": Column("memory, GiB", 2, _step_memory, trains=False, slow=True),
}
