"""Refuse a training step that the machine's memory cannot hold, before anything is built for it."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from hpff import models
from hpff.data import Dataset
from hpff.memory.counting import AllocationCounter
from hpff.memory.machine_memory import machine_memory
from hpff.recipes.recipe import Recipe
from hpff.torch_support.out_of_memory import OutOfMemoryError
from hpff.torch_support.weightless import weightless
from hpff.training.dry_run import rehearse
from hpff.training.setup import choose_device, held_bytes, load_data

# A step whose rough size is within this part of the memory is not planned to the byte: what the
# rough size leaves out (auxiliary networks of ordinary size) is less than what it has too much.
_SURELY_FITS = 0.5
_ORDINARY_SETTING = 4096  # A method's setting above this may make auxiliary networks of any size.
_known_steps: dict[str, int | None] = {}  # A comparison asks for each of its runs twice or more.
_COPIES = 4  # of a parameter: itself, its gradient, at most two of the optimizer


def check_memory(recipe: Recipe, path: Path) -> None:
    """Raise OutOfMemoryError if one step takes more memory than the machine has.

    An ordinary step costs a forward without numbers; only one that comes near the memory is
    rehearsed. What cannot be rehearsed, such as a method that looks at numbers, is let through; and
    so is a compiled step, which may take less than the eager one of a rehearsal.

    Args:
        recipe: its data are loaded, as training will need them.
        path: the run's folder, for the message.

    Raises:
        OutOfMemoryError: the step does not fit; with the figures, and what to lower.
        UserError: the data cannot be loaded, or there is no such device.
    """
    device = choose_device(recipe.device)
    memory = machine_memory(device)
    dataset = load_data(recipe)
    if memory is None or recipe.compile or not _is_suspicious(recipe, dataset, memory):
        return
    needed = _planned(recipe, dataset)
    if needed is not None and needed > memory:
        where = "the GPU" if device.type == "cuda" else "this machine"
        raise OutOfMemoryError(
            f"{path}: a training step takes {_gib(needed)}, but {where} has {_gib(memory)}; "
            f"{_advice(recipe)}"
        )


def _is_suspicious(recipe: Recipe, dataset: Dataset, memory: int) -> bool:
    if any(number > _ORDINARY_SETTING for number in _numbers(recipe.local.method_settings)):
        return True
    shape = dataset.image_shape(recipe.image_size)
    model = json.dumps(recipe.model.to_plain(), sort_keys=True, default=repr)
    rough = _rough_bytes(model, dataset.num_classes, (recipe.batch_size, *shape))
    return rough is None or rough + _held(recipe, dataset) > _SURELY_FITS * memory


@functools.lru_cache(maxsize=32)
def _rough_bytes(model: str, num_classes: int, images: tuple[int, ...]) -> int | None:
    """Parameters with all their copies, and all that one forward makes; None if it cannot run.

    The model comes as JSON, by which one that was tried before is known again.
    """
    plain = json.loads(model)
    name = plain if isinstance(plain, str) else plain.pop("name")
    settings = {} if isinstance(plain, str) else plain
    births = _Births()
    try:
        with torch.random.fork_rng(devices=[]), weightless():
            backbone = models.create(name, num_classes, in_channels=images[1], **settings)
            with births:
                backbone.train()(torch.empty(images))
    except Exception:  # noqa: BLE001 - whatever it is, the run itself will say it
        return None
    return _COPIES * sum(tensor.nbytes for tensor in backbone.parameters()) + births.total


class _Births(AllocationCounter):
    """Adds up all that is ever made."""

    total = 0

    def _born(self, key: int, size: int) -> None:
        self.total += size


def _planned(recipe: Recipe, dataset: Dataset) -> int | None:
    """Bytes of a step and of the data beside it; None where a step cannot be rehearsed."""
    key = json.dumps({**recipe.to_plain(), "seed": None}, sort_keys=True, default=repr)
    if key not in _known_steps:
        try:
            peak = rehearse(recipe, steps=1, dataset=dataset)
            _known_steps[key] = peak + _held(recipe, dataset)
        except Exception:  # noqa: BLE001 - whatever it is, the run itself will say it
            _known_steps[key] = None
    return _known_steps[key]


def _held(recipe: Recipe, dataset: Dataset) -> int:
    """Bytes of the images beside a step; of a part of them nothing, as a GPU gets only the part."""
    return held_bytes(dataset) if recipe.subset is None else 0


def _numbers(value: object) -> Iterator[float]:
    """The numbers in a method's settings, however deep."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, Mapping):
        yield from _numbers(list(value.values()))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _numbers(item)


def _advice(recipe: Recipe) -> str:
    """What to lower, the easiest first."""
    lower = [f"a smaller batch_size ({recipe.batch_size})", "a smaller image_size or model"]
    if recipe.local.recompute_budget > 1:
        lower.append("recompute_budget=1")
    if recipe.local.is_backprop:
        if recipe.local.recompute != "blocks" and not recipe.compile:
            lower.append("recompute=blocks")
        lower.append("a local method")
    else:
        lower.append("more modules")
        if recipe.local.recompute != "repeatedly":
            leaner = "repeatedly" if recipe.local.recompute == "blocks" else "blocks"
            lower.append(f"recompute={leaner}")
    if recipe.precision == "fp32":
        lower.append("precision=bf16")
    return f"try {', '.join(lower[:-1])} or {lower[-1]}"


def _gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
