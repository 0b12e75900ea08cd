"""Recipes take a step at full published size, without their data."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from hpff import LocalLearner
from hpff.engine.step import Losses
from hpff.recipes import files as recipe_files
from hpff.recipes.recipe import Recipe
from hpff.training import dry_run, loop
from hpff.training.dry_run import rehearse
from hpff.training.setup import Parts, assemble

EVERY = [name for name, _ in recipe_files.names()]


@dataclass(frozen=True)
class Rehearsal:
    """What a recipe's step showed."""

    peak: int
    parameters: int
    stepped: int
    modules: int
    independent: int
    cascade: int
    logits: tuple[int, ...]
    random_untouched: bool


def rehearsed(name: str) -> Rehearsal:
    """Take a recipe's step, and look at what it was of, and what it left."""
    seen: list[tuple[Parts, Losses]] = []

    def watched(*given: Any) -> Parts:
        parts = assemble(*given)

        def step(images: torch.Tensor, targets: torch.Tensor) -> Losses:
            seen.append((parts, parts.step(images, targets)))
            return seen[-1][1]

        return dataclasses.replace(parts, step=step)

    torch.set_num_threads(1)
    before = torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dry_run, "assemble", watched)
        peak = rehearse(recipe_files.load(name), steps=1)
    ((parts, losses),) = seen
    learner = parts.learner
    return Rehearsal(
        peak=peak,
        parameters=sum(p.numel() for p in learner.parameters()),
        stepped=sum(t.numel() for t in parts.optimizers.state_tensors() if t.ndim),
        modules=len(learner.partition) if isinstance(learner, LocalLearner) else 1,
        independent=len(losses.independent),
        cascade=len(losses.cascade),
        logits=tuple(losses.logits.shape),
        random_untouched=torch.equal(torch.get_rng_state(), before),
    )


def pairs_in(recipe: Recipe) -> set[tuple[object, ...]]:
    """What a recipe brings together, two at a time, of what decides a step's operations."""
    network, label = str(recipe.model), recipe.local.label()
    family = "".join(letter for letter in recipe.model.name if not letter.isdigit())
    return {(family, label), (network, recipe.local.modules), ("data", recipe.data)}


def few_with_every_pair() -> list[str]:
    """Recipes such that each pair in any recipe is in one of them, of few modules if possible."""
    every = {name: recipe_files.load(name) for name in EVERY}
    left = {name: pairs_in(recipe) for name, recipe in every.items()}
    chosen = []
    while any(left.values()):
        most = min(left, key=lambda name: (-len(left[name]), every[name].local.modules or 0, name))
        chosen.append(most)
        found = left[most]
        left = {name: pairs - found for name, pairs in left.items()}
    return chosen


@pytest.mark.long
@pytest.mark.parametrize("name", few_with_every_pair())
def test_a_recipe_takes_a_step_at_full_size(name: str) -> None:
    """In K modules, with a loss for each place of each level; every weight has been stepped."""
    found, recipe = rehearsed(name), recipe_files.load(name)
    modules = 1 if recipe.local.is_backprop else recipe.local.modules
    assert found.modules == modules
    k = recipe.local.cascade
    if not recipe.local.is_backprop:
        assert found.independent == (modules if recipe.local.independent else 0)
        ends = (modules - k) // recipe.local.cascade_stride + 1
        assert found.cascade == (ends if k > 1 else 0)
    classes = {"imagenet": 1000, "camvid": 11, "cityscapes": 19}.get(recipe.data.split(":")[0], 10)
    assert found.logits == (recipe.batch_size, classes, *(recipe.crop_size or ()))
    states = 2 if recipe.optimizer.name == "adamw" else 1
    assert found.stepped == states * found.parameters
    assert found.peak > (1 + states) * 4 * found.parameters
    assert found.random_untouched


def test_rehearsing_needs_no_memory_and_finds_backprop_the_larger() -> None:
    names = ("imagenet/resnet101-bp", "imagenet/resnet101-k4-infopro")
    backprop, local = (rehearse(recipe_files.load(name)) for name in names)
    assert backprop > local > 2**30


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_rehearsal_counts_what_the_run_counts(
    tmp_path: Path, make_recipe: Any, silent: Any, precision: str
) -> None:
    recipe: Recipe = make_recipe(device="cpu", batch_size=128, precision=precision)
    loop.train(recipe, tmp_path / "run", resume=False, observer=silent())
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert rehearse(recipe) == report["peak_memory_bytes"]


def test_a_compiled_recipe_is_counted_in_eager_steps() -> None:
    eager = recipe_files.load("demo")
    assert rehearse(dataclasses.replace(eager, compile=True)) == rehearse(eager)
