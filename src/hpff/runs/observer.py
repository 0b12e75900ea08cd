"""Who hears how a run goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from hpff.recipes.recipe import Recipe


class StepObserver(Protocol):
    """Hears of every step."""

    def stepped(self, step: int, steps: int, loss: float | None) -> None:
        """Step `step` of `steps` is done; its loss where it is known without waiting for it."""


class Observer(StepObserver, Protocol):
    """Hears how a run goes: every step, every epoch."""

    def started(self, recipe: Recipe, path: Path, epochs_done: int) -> None:
        """Training starts, or goes on after `epochs_done` epochs."""

    def epoch_done(self, metrics: Mapping[str, Any]) -> None:
        """An epoch is trained, evaluated and saved."""
