"""Live progress of training: bars on a terminal, a line an epoch elsewhere; always on stderr."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from hpff.experiments.comparison_report import megabytes
from hpff.recipes.recipe import Recipe
from hpff.runs.observer import Observer
from hpff.runs.wandb_log import WandbLog


@contextmanager
def progress(label: str = "", wandb: str | None = None) -> Iterator[Observer]:
    """An observer that shows a run, and logs it to a W&B project, as long as the block lasts."""
    with _shown(label) as shown:
        if wandb is None:
            yield shown
            return
        with contextlib.closing(WandbLog(shown, wandb)) as log:
            yield log


@contextmanager
def _shown(label: str) -> Iterator[Observer]:
    console = Console(stderr=True, highlight=False, markup=False)
    if not console.is_terminal:
        yield PlainProgress(console, label)
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        _Numbers(),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
    ) as bars:
        yield BarProgress(bars, label)


class Unseen:
    """Shows nothing: for the processes of a run beside the first."""

    def started(self, recipe: Recipe, path: Path, epochs_done: int) -> None:
        pass

    def stepped(self, step: int, steps: int, loss: float | None) -> None:
        pass

    def epoch_done(self, metrics: Mapping[str, Any]) -> None:
        pass


class PlainProgress:
    """One line an epoch."""

    def __init__(self, console: Console, label: str) -> None:
        self._console = console
        self._label = f"{label}: " if label else ""
        self._epochs = self._first = 0
        self._began = 0.0

    def started(self, recipe: Recipe, path: Path, epochs_done: int) -> None:
        """Say where the run goes."""
        self._epochs, self._first = recipe.epochs, epochs_done
        self._began = time.monotonic()
        self._line(_opening(path, epochs_done))

    def stepped(self, step: int, steps: int, loss: float | None) -> None:
        """Steps make no line."""

    def epoch_done(self, metrics: Mapping[str, Any]) -> None:
        """Print the epoch."""
        done = metrics["epoch"] - self._first
        left = (time.monotonic() - self._began) / done * (self._epochs - metrics["epoch"])
        self._line(
            f"epoch {metrics['epoch']}/{self._epochs}: {_numbers(metrics)}, {_duration(left)} left"
        )

    def _line(self, text: str) -> None:
        self._console.print(f"{self._label}{text}", soft_wrap=True)


class BarProgress:
    """One bar over all epochs' steps, with the last numbers beside it."""

    def __init__(self, bars: Progress, label: str) -> None:
        self._bars = bars
        self._label = f"{label} " if label else ""
        self._task = TaskID(0)
        self._epochs = self._done = 0

    def started(self, recipe: Recipe, path: Path, epochs_done: int) -> None:
        """Say where the run goes and show the bar."""
        self._epochs, self._done = recipe.epochs, epochs_done
        self._bars.console.print(f"{self._label}{_opening(path, epochs_done)}")
        self._task = self._bars.add_task(self._description(), total=recipe.epochs, numbers="")
        self._bars.update(self._task, completed=epochs_done)

    def stepped(self, step: int, steps: int, loss: float | None) -> None:
        """Move the bar."""
        self._bars.update(self._task, completed=self._done + step / steps)
        if loss is not None:
            self._bars.update(self._task, loss=loss)

    def epoch_done(self, metrics: Mapping[str, Any]) -> None:
        """Show the epoch's numbers."""
        self._done = metrics["epoch"]
        self._bars.update(
            self._task, description=self._description(), completed=self._done, metrics=metrics
        )

    def _description(self) -> str:
        return f"{self._label}epoch {min(self._done + 1, self._epochs)}/{self._epochs}"


class _Numbers(ProgressColumn):
    """The step's loss and the last epoch's numbers."""

    def render(self, task: Task) -> Text:
        metrics, loss = task.fields.get("metrics"), task.fields.get("loss")
        parts = [f"loss {loss:.3f}"] if loss is not None else []
        if metrics:
            parts.append(_numbers(metrics, with_loss=False))
        return Text(", ".join(parts))


def _opening(path: Path, epochs_done: int) -> str:
    return f"{path}" + (f", going on after epoch {epochs_done}" if epochs_done else "")


def _numbers(metrics: Mapping[str, Any], *, with_loss: bool = True) -> str:
    parts = [f"loss {metrics['loss']:.4f}"] if with_loss else []
    if metrics["test_error_percent"] is not None:
        parts.append(f"error {metrics['test_error_percent']:.2f} %")
    if metrics.get("test_miou_percent") is not None:
        parts.append(f"mIoU {metrics['test_miou_percent']:.2f} %")
    if metrics.get("broken_images"):
        parts.append(f"{metrics['broken_images']} broken images left out")
    parts.append(f"{metrics['images_per_second']:.0f} images/s")
    parts.append(f"peak {megabytes(metrics['peak_memory_bytes'])}")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
