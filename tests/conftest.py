from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from hpff.recipes import recipe as recipes
from hpff.recipes.recipe import Recipe

REPOSITORY = Path(__file__).resolve().parent.parent

# No timing decides a test; where CI is set, every run tries the same examples.
settings.register_profile("hpff", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("hpff")


def pytest_configure() -> None:
    """Let tests make their tensors on HPFF_TEST_DEVICE, where that is set, such as cuda.

    Convolutions and products are then exact to their type, and the same every time.
    """
    device = os.environ.get("HPFF_TEST_DEVICE")
    if device:
        torch.set_default_device(device)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: some tests only wait for processes that they have started."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Start each test from the same global random states, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global state is what third parties draw from
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """No terminal says how wide it is, though pytest-xdist tells its workers."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Return the folder of real data sets, or skip: HPFF_DATA, or ../shared/data."""
    default = REPOSITORY.parent / "shared" / "data"
    folder = Path(os.environ.get("HPFF_DATA", default)).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data: set HPFF_DATA to the folder that holds cifar10/ (not {folder})")
    return folder


@pytest.fixture(scope="session")
def cifar10_folder(data_folder: Path) -> Path:
    """Return the folder with CIFAR-10's train.parquet and test.parquet, or skip."""
    folder = data_folder / "cifar10"
    for split in ("train", "test"):
        if not (folder / f"{split}.parquet").is_file():
            pytest.skip(f"no real CIFAR-10: {folder / split}.parquet is missing (see HPFF_DATA)")
    return folder


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


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny steps are quicker on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_recipe(one_thread: None) -> Any:
    """Return a maker of tiny recipes: two steps an epoch, three epochs."""

    def make(**changes: Any) -> Recipe:
        return recipes.parse({**PLAIN, **changes}, "tiny")

    return make


@pytest.fixture
def silent() -> type[Silent]:
    """Return the observer's class."""
    return Silent
