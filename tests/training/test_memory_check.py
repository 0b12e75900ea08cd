"""A step that the machine cannot hold is refused before anything is built for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from platforms import posix_only
from torch import Tensor

from hpff import methods
from hpff.methods.dgl import DGL
from hpff.torch_support.out_of_memory import OutOfMemoryError
from hpff.training import loop, memory_check
from hpff.training.dry_run import rehearse
from hpff.training.memory_check import check_memory

RUN = Path("run")


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_check, "_known_steps", {})


def has(memory: int | None, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(memory_check, "machine_memory", lambda _: memory)


def test_a_step_must_fit(make_recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(device="cpu")
    needed = rehearse(recipe, steps=1)
    has(needed, monkeypatch)
    check_memory(recipe, RUN)
    has(needed - 1, monkeypatch)
    with pytest.raises(OutOfMemoryError, match=r"^run: a training step takes 0\.0 GiB, but this"):
        check_memory(recipe, RUN)


def test_data_in_memory_count(make_recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_check, "rehearse", lambda *_, **__: 1000)
    recipe = make_recipe(device="cpu", subset=None)
    has(1000 + (1437 + 360) * (64 + 8), monkeypatch)
    check_memory(recipe, RUN)
    has(999 + (1437 + 360) * (64 + 8), monkeypatch)
    with pytest.raises(OutOfMemoryError):
        check_memory(recipe, RUN)


def test_an_ordinary_step_is_not_rehearsed(
    make_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsed = []
    monkeypatch.setattr(memory_check, "rehearse", lambda recipe, **_: rehearsed.append(recipe) or 1)
    has(2**30, monkeypatch)
    check_memory(make_recipe(device="cpu"), RUN)
    assert rehearsed == []
    large = make_recipe(device="cpu", method={"name": "infopro", "hidden": 5000})
    check_memory(large, RUN)
    has(2**20, monkeypatch)
    check_memory(make_recipe(device="cpu"), RUN)
    check_memory(make_recipe(device="cpu", seed=1), RUN)
    assert rehearsed == [large, make_recipe(device="cpu")]


def test_an_unknown_memory_refuses_nothing(
    make_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    has(None, monkeypatch)
    check_memory(make_recipe(device="cpu", model={"name": "resnet20", "width": 60000}), RUN)


def test_a_compiled_step_is_let_through(make_recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_check, "rehearse", lambda *_, **__: 1000)
    has(1, monkeypatch)
    check_memory(make_recipe(device="cpu", compile=True), RUN)


class Looking(DGL):
    """Looks at numbers, which a rehearsal has not."""

    def loss(self, outputs: Any, targets: Tensor, context: Any) -> Tensor:
        loss = super().loss(outputs, targets, context)
        assert loss.item() > 0
        return loss


def test_what_cannot_be_rehearsed_is_let_through(
    make_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods.registry, "_registered", {"looking": Looking})
    has(1, monkeypatch)
    check_memory(make_recipe(device="cpu", method="looking"), RUN)


@posix_only  # Windows does not say what there is, and would try.
@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        (
            {"model": {"name": "resnet20", "width": 65536}},
            "more modules, recompute=blocks or precision=bf16",
        ),
        (
            {"batch_size": 128, "image_size": 4096, "model": "resnet110", "method": "bp"},
            "a smaller image_size or model, recompute=blocks, a local method or precision=bf16",
        ),
        (
            {
                "model": {"name": "resnet20", "width": 65536},
                "recompute": "blocks",
                "recompute_budget": 3,
            },
            "recompute_budget=1, more modules, recompute=repeatedly or precision=bf16",
        ),
        (
            {
                "method": {"name": "infopro", "head": "2c3f", "hidden": 65536, "widen": 100},
                "recompute": "repeatedly",
                "precision": "bf16",
            },
            "a smaller batch_size (64), a smaller image_size or model or more modules",
        ),
    ],
)
def test_a_run_beyond_any_machine_leaves_no_trace(
    tmp_path: Path, make_recipe: Any, silent: Any, changes: dict[str, Any], advice: str
) -> None:
    """On the machine that it is: nothing is allocated, and nothing written."""
    recipe = make_recipe(device="cpu", **changes)
    with pytest.raises(OutOfMemoryError) as caught:
        loop.train(recipe, tmp_path / "run", resume=False, observer=silent())
    (line,) = caught.value.args
    found = re.search(r"takes ([\d,]+)\.\d GiB, but this machine has ([\d,]+)\.\d GiB", line)
    assert found is not None
    assert int(found[1].replace(",", "")) > int(found[2].replace(",", ""))
    assert f"; try a smaller batch_size ({recipe.batch_size}), " in line
    assert line.endswith(advice)
    assert list(tmp_path.iterdir()) == []


def test_the_check_draws_no_random_numbers(
    make_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    has(2**24, monkeypatch)
    before = torch.get_rng_state()
    check_memory(make_recipe(device="cpu"), RUN)
    assert torch.equal(torch.get_rng_state(), before)
