"""What is analyzed: a finished run, or a model with weights from elsewhere, and its data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpff import data, models
from hpff.analysis.networks import Network
from hpff.analysis.run_learner import Shape, learner_of_run
from hpff.data import Dataset, EncodedSet, ImageBatches, ImageSet, PairSet
from hpff.data.classes import with_classes
from hpff.errors import UserError
from hpff.runs.finished_run import FinishedRun
from hpff.runs.foreign_weights import load_weights
from hpff.runs.run_data import check_same, own_data
from hpff.training.setup import load_once

BATCH = 128
MOST_CLASSES = 20


class Pass:
    """Batches that can be gone through again and again, each time the same."""

    def __init__(self, batches: ImageBatches) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._batches.epoch(torch.Generator().manual_seed(0))


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained network and the data that it is shown.

    Attributes:
        label: what it is called.
        network: with a learner where the auxiliary networks' weights are at hand.
        dataset: the data, normalized as in the network's training.
        shape: (C, H, W) of an image as the network sees it.
        batch_size: of its training.
        subset: how many training images it was trained on; None for all.
        seed: of its training.
        augment: whether its training augmented images.
        run: the run; None for a model from elsewhere.
    """

    label: str
    network: Network
    dataset: Dataset
    shape: Shape
    batch_size: int = BATCH
    subset: int | None = None
    seed: int = 0
    augment: bool = True
    run: FinishedRun | None = None

    @classmethod
    def of_run(
        cls,
        path: Path,
        *,
        dataset: str | None = None,
        modules: int | Sequence[str] | None = None,
        label: str | None = None,
    ) -> Subject:
        """A finished run.

        Args:
            path: its folder.
            dataset: other data by name; None for its own.
            modules: another cut than its own, for features alone.
            label: by default what the run's settings are called.

        Raises:
            UserError: there is no finished run, or its data or weights are not what they were.
        """
        run = FinishedRun.read(path)
        recipe = dataclasses.replace(
            run.recipe,
            compile=False,
            cuda_graph=False,
            device="cpu" if run.recipe.device == "cpu" else "auto",
        )
        treatment = "auto" if dataset else recipe.treatment
        found = load_once(dataset or own_data(run), treatment, recipe.broken_images)
        if dataset is None:
            check_same(run, found, "--data")
            if recipe.held_out is not None:
                found = dataclasses.replace(found, train=found.train.without(recipe.held_out))
        _check_classes(str(path), run.facts.class_names, found)
        shape = _shape(found, run.facts.image_shape)
        seen = dataclasses.replace(found, mean=run.facts.mean, std=run.facts.std)
        learner = learner_of_run(run, recipe, seen, shape)
        name = label or recipe.local.label()
        if learner is None:
            cut = recipe.local.modules if modules is None else modules
            network = Network.of(run.model(), modules=cut, example=_example(shape), label=name)
        else:
            network = Network.of(learner, modules=modules, label=name)
        return cls(
            label=name,
            network=network,
            dataset=seen,
            shape=shape,
            batch_size=recipe.batch_size,
            subset=recipe.subset if dataset is None else None,
            seed=recipe.seed,
            augment=recipe.augment,
            run=run,
        )

    @classmethod
    def of_weights(
        cls,
        name: str,
        settings: Mapping[str, Any],
        file: Path,
        *,
        dataset: str,
        modules: int | Sequence[str] | None = None,
        image_size: int | None = None,
        label: str | None = None,
    ) -> Subject:
        """A model by name with weights from elsewhere.

        Args:
            name: as ``hpff.models.create`` takes it.
            settings: likewise.
            file: its weights: safetensors, or ``torch.save`` of a state_dict.
            dataset: by name.
            modules: K, or where to cut; None: a module for each block.
            image_size: pixels a side that images are resized to; None: as they are.
            label: by default the file's name.

        Raises:
            UserError: there is no such model, or its weights or data cannot be had or do not fit.
        """
        found = load_once(dataset)
        shape = found.image_shape(image_size)
        model = models.create(name, found.num_classes, in_channels=shape[0], **settings)
        load_weights(model, file, name)
        called = label or file.name
        network = Network.of(model, modules=modules, example=_example(shape), label=called)
        return cls(called, network, found, shape)

    def named(self, label: str) -> Subject:
        """The same under another label."""
        network = dataclasses.replace(self.network, label=label)
        return dataclasses.replace(self, label=label, network=network)

    @property
    def num_classes(self) -> int:
        """How many classes its answers are among."""
        return self.dataset.num_classes

    def test(self, samples: int | None) -> Pass:
        """So many test images, as many of each class as there are, or all."""
        return self._pass(_some(self._classified(self.dataset.test), samples, 0))

    def drawn(self, samples: int) -> Pass:
        """So many test images of a few classes, those whose dots can be told apart in a picture."""
        images = self._classified(self.dataset.test)
        classes = min(self.num_classes, MOST_CLASSES, max(2, samples // 10))
        if classes < self.num_classes:
            images = with_classes(images, {label: label for label in range(classes)})
        return self._pass(_some(images, samples, 0))

    def train(self, samples: int | None) -> Pass:
        """So many of the training images that it was trained on, not augmented, or all."""
        return self._pass(_some(self._trained_on(), samples, self.seed))

    def training(self) -> Pass:
        """Its training's batches: their size, augmented as there."""
        images = self._trained_on()
        batches = self._batches(images, min(self.batch_size, len(images)), training=True)
        return Pass(batches)

    def images(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Test images by their numbers: as the network sees them (B, C, H, W), and labels (B,).

        Raises:
            UserError: there is no image of such a number.
        """
        test = self._classified(self.dataset.test)
        if not all(0 <= index < len(test) for index in indices):
            raise UserError(
                f"{self.dataset.name}: has {len(test)} test images; expected numbers of 0 to "
                f"{len(test) - 1}"
            )
        chosen = torch.tensor(list(indices))
        if isinstance(test, ImageSet):
            picked: ImageSet | EncodedSet = ImageSet(test.images[chosen], test.labels[chosen])
        else:
            picked = EncodedSet(test.source, test.labels[chosen], test.places[chosen])
        return next(iter(Pass(self._batches(picked, len(chosen), training=False))))

    def visible(self, images: Tensor) -> Tensor:
        """Images as the network sees them as colors from 0 to 1."""
        mean, std = (
            torch.tensor(each, device=images.device).view(-1, 1, 1)
            for each in (self.dataset.mean, self.dataset.std)
        )
        return (images * std + mean).clamp(0, 1)

    def _trained_on(self) -> ImageSet | EncodedSet:
        images = self._classified(self.dataset.train)
        return images if self.subset is None else images.subset(self.subset, seed=self.seed)

    def _classified(self, images: ImageSet | EncodedSet | PairSet) -> ImageSet | EncodedSet:
        if isinstance(images, PairSet):
            raise UserError(
                f"{self.dataset.name}: is for segmentation; the views are of classifiers so far"
            )
        return images

    def _pass(self, images: ImageSet | EncodedSet) -> Pass:
        return Pass(self._batches(images, BATCH, training=False))

    def _batches(self, images: ImageSet | EncodedSet, size: int, *, training: bool) -> ImageBatches:
        parameter = next(self.network.model.parameters(), torch.empty(0))
        return data.batches(
            images,
            self.dataset,
            batch_size=size,
            device=parameter.device,
            shuffle=training,
            augment=training and self.augment,
            drop_last=training,
            image_size=self.shape[1],
            workers=None if self.run is None else self.run.recipe.workers,
            broken_images="stop" if self.run is None else self.run.recipe.broken_images,
        )


def check_comparable(subjects: Sequence[Subject], *, given: bool) -> None:
    """Raise UserError unless all subjects are shown the same images under the same labels.

    Args:
        subjects: one or more.
        given: whether the data were named for all of them.
    """
    first = subjects[0]
    for other in subjects[1:]:
        if other.num_classes != first.num_classes:
            raise UserError(
                f"{other.label}: has {other.num_classes} classes and {first.label} "
                f"{first.num_classes}; expected networks of the same classes"
            )
        same = given or not data.data_differences(
            data.fingerprint(first.dataset), data.fingerprint(other.dataset)
        )
        if not same:
            raise UserError(
                f"{other.label}: was trained on other data ({other.dataset.name}) than "
                f"{first.label} ({first.dataset.name}); name the data that all are shown by --data"
            )


def _example(shape: Shape) -> Tensor:
    return torch.full((2, *shape), 0.5)


def _check_classes(name: str, ours: Sequence[str], found: Dataset) -> None:
    if found.num_classes != len(ours):
        raise UserError(
            f"{name}: has {len(ours)} classes and {found.name} {found.num_classes}; expected data "
            "of as many classes, in the run's order"
        )


def _shape(found: Dataset, wanted: Shape) -> Shape:
    """What the network is shown: images of other data are resized."""
    channels = found.image_shape()[0]
    if channels != wanted[0]:
        raise UserError(
            f"{found.name}: its images have {channels} channels, and the run's {wanted[0]}; "
            "expected as many"
        )
    if found.image_shape() != wanted and wanted[1] != wanted[2]:
        raise UserError(
            f"{found.name}: its images cannot be resized to {wanted[1]}x{wanted[2]}, as only "
            "square ones can be resized to"
        )
    return wanted


def _some(images: ImageSet | EncodedSet, count: int | None, seed: int) -> ImageSet | EncodedSet:
    if count is not None and count < 1:
        raise UserError(f"samples is {count}; expected 1 or more")
    return images if count is None or count >= len(images) else images.subset(count, seed=seed)
