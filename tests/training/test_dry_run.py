"""Every recipe builds its model and takes a step at full published size, without its data."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from hpff.recipes import files as recipe_files
from hpff.recipes.recipe import Recipe
from hpff.training import loop
from hpff.training.dry_run import rehearse

EVERY = [name for name, _ in recipe_files.names()]
OPTIMIZER = {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4, "name": "sgd"}
PUBLISHED = {
    "cifar10": (400, 1024, 0.8, ("cosine", 10)),
    "svhn": (400, 1024, 0.8, ("cosine", 10)),
    "stl10": (400, 128, 0.1, ("cosine", 10)),
    "imagenet": (90, 128, 0.05, ("cosine-from-full", 0)),
}


def rehearsed(name: str) -> tuple[int, bool]:
    """The peak of a recipe's step, and whether the random generator stayed as it was."""
    torch.set_num_threads(1)
    before = torch.get_rng_state()
    peak = rehearse(recipe_files.load(name), steps=1)
    return peak, torch.equal(torch.get_rng_state(), before)


@pytest.fixture(scope="module")
def rehearsals() -> Iterator[dict[str, Future[tuple[int, bool]]]]:
    """All recipes' at once, on all cores: they take minutes."""
    processes = min(4, os.cpu_count() or 1)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield {name: pool.submit(rehearsed, name) for name in EVERY}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", EVERY)
def test_a_recipe_takes_a_step_at_full_size(
    name: str, rehearsals: dict[str, Future[tuple[int, bool]]]
) -> None:
    peak, random_untouched = rehearsals[name].result()
    assert random_untouched
    recipe = recipe_files.load(name)
    assert peak > recipe.batch_size * 3 * 32 * 32 * 4


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


@pytest.mark.parametrize("name", EVERY)
def test_recipes_have_the_published_settings(name: str) -> None:
    recipe = recipe_files.load(name)
    if recipe.data not in PUBLISHED or "vit" in name:
        return
    epochs, batch, rate, schedule = PUBLISHED[recipe.data]
    assert (recipe.epochs, recipe.batch_size) == (epochs, batch)
    assert recipe.optimizer.lr == (0.025 if "vgg13" in name else rate)
    assert (recipe.schedule.name, recipe.schedule.warmup_epochs) == schedule
    plain = recipe.to_plain()["optimizer"]
    assert {key: plain[key] for key in OPTIMIZER} == OPTIMIZER


@pytest.mark.parametrize("name", EVERY)
def test_a_recipes_name_says_what_it_is(name: str) -> None:
    if "/" not in name:
        return
    recipe = recipe_files.load(name)
    data, _, rest = name.partition("/")
    network, *words = rest.split("-")
    assert recipe.data == data
    assert network in recipe.model.name.partition("/")[2] or network == recipe.model.name
    method = words.pop(0) if words == ["bp"] else words[1]
    assert recipe.method.name == method
    if method == "bp":
        return
    suffix = words[2] if len(words) > 2 else ""
    levels = (recipe.independent, recipe.cascade, recipe.patches)
    assert f"k{recipe.modules}" == words[0]
    assert (
        levels
        == {
            "": (True, 1, 1),
            "cl": (False, 2, 1),
            "hilo": (True, 2, 1),
            "pff": (True, 1, 2),
            "pff4": (True, 1, 4),
            "hpff": (True, 2, 2),
        }[suffix]
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in the compiler's own imports
def test_a_compiled_recipe_is_counted_in_eager_steps() -> None:
    eager = recipe_files.load("demo")
    assert rehearse(dataclasses.replace(eager, compile=True)) == rehearse(eager)
