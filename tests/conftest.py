from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parent.parent

# No timing decides a test; where CI is set, every run tries the same examples.
settings.register_profile("hpff", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("hpff")


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Start each test from the same global random states, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global state is what third parties draw from
    torch.manual_seed(0)


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
