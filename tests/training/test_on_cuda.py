"""Training on a CUDA device; skipped where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from hpff.errors import UserError
from hpff.runs.run_directory import RunDirectory
from hpff.training.loop import train
from hpff.training.setup import assemble

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
METHODS = ["bp", "dgl", "predsim", "infopro", "auglocal", "man"]


@pytest.fixture
def exact() -> Any:
    """Convolutions in full precision, by kernels that give the same numbers each time."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


def weights(folder: Path, recipe: Any, observer: Any, *, resume: bool = False) -> Any:
    train(recipe, folder, resume=resume, observer=observer)
    return safetensors.torch.load_file(RunDirectory(folder).weights)


@needs_cuda
@pytest.mark.parametrize("method", METHODS)
def test_replayed_steps_give_the_weights_of_eager_ones(
    tmp_path: Path, make_recipe: Any, silent: Any, exact: None, method: str
) -> None:
    """Twelve steps: the rate rises and falls, and is no constant of the graph.

    InfoPro enlarges maps, whose gradient on a GPU adds up in no order of its own.
    """
    common = {"method": method, "device": "cuda", "subset": 256}
    common["schedule"] = {"name": "cosine", "warmup_epochs": 1}
    eager = weights(tmp_path / "eager", make_recipe(**common), silent())
    replayed = weights(tmp_path / "graph", make_recipe(**common, cuda_graph=True), silent())
    apart = 0.01 if method == "infopro" else 1e-4
    torch.testing.assert_close(replayed, eager, rtol=1e-3, atol=apart)


@needs_cuda
def test_a_run_that_replays_goes_on(
    tmp_path: Path, make_recipe: Any, silent: Any, exact: None
) -> None:
    recipe = make_recipe(device="cuda", cuda_graph=True, subset=256)
    whole = weights(tmp_path / "whole", recipe, silent())
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "cut", resume=False, observer=silent(stop_at=9))
    cut = weights(tmp_path / "cut", recipe, silent(), resume=True)
    torch.testing.assert_close(cut, whole, rtol=1e-3, atol=1e-4)


@needs_cuda
@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_several_streams_give_the_weights_of_one(
    tmp_path: Path, make_recipe: Any, silent: Any, exact: None, method: str, cuda_graph: bool
) -> None:
    common = {"method": method, "device": "cuda", "subset": 256, "cuda_graph": cuda_graph}
    one = weights(tmp_path / "one", make_recipe(**common), silent())
    several = weights(tmp_path / "several", make_recipe(**common, streams=4), silent())
    apart = 0.01 if method == "infopro" else 1e-4
    torch.testing.assert_close(several, one, rtol=1e-3, atol=apart)


def test_a_graph_on_the_cpu_is_refused(make_recipe: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("auto finds a CUDA device")
    with pytest.raises(UserError, match="cuda_graph: is true on the CPU"):
        assemble(make_recipe(cuda_graph=True))
    with pytest.raises(UserError, match="with device cpu, expected false, or device=cuda"):
        make_recipe(cuda_graph=True, device="cpu")
