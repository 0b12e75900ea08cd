from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from hpff.training import recipe as recipes
from hpff.training.recipe import Recipe

PLAIN: dict[str, Any] = {
    "model": {"name": "resnet20", "width": 4},
    "data": "digits",
    "method": "dgl",
    "modules": 3,
    "cascade": 2,
    "patches": 2,
    "epochs": 3,
    "batch_size": 64,
    "subset": 128,
    "optimizer": {"lr": 0.1},
}


class Silent:
    """An observer that may stop a run at a step, counted over the whole run."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.steps = 0
        self.opened: list[int] = []
        self.epochs: list[int] = []

    def started(self, recipe: Recipe, path: Path, epochs_done: int) -> None:
        self.opened.append(epochs_done)

    def stepped(self, step: int, steps: int, loss: float | None) -> None:
        self.steps += 1
        if self.steps == self.stop_at:
            raise KeyboardInterrupt

    def epoch_done(self, metrics: Mapping[str, Any]) -> None:
        self.epochs.append(metrics["epoch"])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny steps are quicker on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_recipe() -> Any:
    """Return a maker of tiny recipes: two steps an epoch, three epochs."""

    def make(**changes: Any) -> Recipe:
        return recipes.parse({**PLAIN, **changes}, "tiny")

    return make


@pytest.fixture
def silent() -> type[Silent]:
    """Return the observer's class."""
    return Silent
