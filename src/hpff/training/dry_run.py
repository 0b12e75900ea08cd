"""A training step at full size without data, memory or a device."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from hpff import data
from hpff.data import Dataset, ImageSet
from hpff.recipes.recipe import Recipe
from hpff.torch_support.fake_tensors import FakeTensors, fake_model
from hpff.training.setup import Parts, assemble, create_model
from hpff.training.step_cost import PeakMemory


def rehearse(recipe: Recipe, steps: int = 2, dataset: Dataset | None = None) -> int:
    """Build a recipe and take training steps under fake tensors.

    Args:
        recipe: its data are needed by their sizes alone if they are the paper's, else loaded.
        steps: two find the peak, as the optimizer's state exists from the second on.
        dataset: takes the place of the recipe's data.

    Returns:
        The steps' peak bytes, of what a run's report counts on a CPU: all tensors but the data set.

    Raises:
        UserError: something cannot be built.
    """
    recipe = dataclasses.replace(
        recipe, device="cpu", cuda_graph=False, subset=None, held_out=None, threads=None
    )
    known = {**data.PUBLISHED_DATASETS, **data.SEGMENTATION_DATASETS}
    if dataset is None and recipe.data not in known:
        dataset = data.load(recipe.data, treatment=recipe.treatment)
    mode = FakeTensors()
    with torch.random.fork_rng(devices=[]):
        with mode:
            blank = (
                _emptied(dataset, recipe) if dataset else data.blank(recipe.data, recipe.image_size)
            )
            blank = blank.cropped(recipe.crop_size)
        model = fake_model(lambda: create_model(recipe, blank), mode)
        with mode:
            parts = assemble(recipe, blank, model)
            memory = PeakMemory(parts)
            batches = _batches(parts)
            parts.learner.train()
            for _ in range(steps):
                images, targets = next(batches)
                with memory.step((images, targets)):
                    parts.step(images, targets)
    return memory.bytes()


def _batches(parts: Parts) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of training; blank ones of images that would have to be decoded with their labels."""
    if parts.dataset.task == "classification":
        yield from parts.train.epoch(torch.Generator())
        return
    shape = parts.dataset.image_shape()
    layout = torch.channels_last if parts.recipe.channels_last else torch.contiguous_format
    while True:
        images = torch.zeros(parts.recipe.batch_size, *shape).to(memory_format=layout)
        yield images, torch.zeros(len(images), *shape[1:], dtype=torch.int64)


def _emptied(dataset: Dataset, recipe: Recipe) -> Dataset:
    """The data set with as many images of the same size, which show nothing."""
    if dataset.task == "segmentation":
        return dataset
    shape = dataset.image_shape(recipe.image_size)
    train, test = (
        ImageSet(
            torch.zeros(len(images), *shape, dtype=torch.uint8),
            torch.zeros(len(images), dtype=torch.int64),
        )
        for images in (dataset.train, dataset.test)
    )
    return dataclasses.replace(dataset, train=train, test=test)
