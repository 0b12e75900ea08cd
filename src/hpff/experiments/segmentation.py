"""A trained model that segments, on its own data or others with the same classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hpff import data
from hpff.data import Dataset, ImageBatches, PairSet
from hpff.errors import UserError
from hpff.experiments.overlays import Overlay
from hpff.runs.finished_run import FinishedRun
from hpff.runs.run_data import check_same, own_data
from hpff.torch_support.autocast import autocast
from hpff.training.evaluation import Score, pixel_score
from hpff.training.inference import Inference
from hpff.training.setup import choose_device


@dataclass(frozen=True)
class PixelEvaluation:
    """A score of pixels, class by class, and how it came about."""

    dataset: str
    split: str
    inference: Inference
    score: Score
    class_names: tuple[str, ...]
    broken_images: int

    def rows(self) -> list[tuple[str, float | None, float | None]]:
        """Each class: its name, intersection over union, and share of its pixels, in percent."""
        assert self.score.pixels is not None
        pixels = self.score.pixels
        return list(zip(self.class_names, pixels.class_iou, pixels.class_accuracy, strict=True))

    def to_plain(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "dataset": self.dataset,
            "split": self.split,
            "images": self.score.images,
            "broken_images": self.broken_images,
            "inference": str(self.inference),
            "miou_percent": self.score.miou,
            "pixel_error_percent": self.score.error,
            "loss": self.score.loss,
            "classes": [
                {"name": name, "iou_percent": iou, "accuracy_percent": accuracy}
                for name, iou, accuracy in self.rows()
            ],
        }


def evaluate_pixels(
    run: FinishedRun,
    dataset: str | None = None,
    *,
    split: str = "test",
    inference: Inference | None = None,
    subset: int | None = None,
    broken_images: data.Policy = "stop",
    observe: Callable[[int], None] = lambda _: None,
) -> PixelEvaluation:
    """Score a run's model on whole images.

    Args:
        run: the model, and what it was trained on.
        dataset: a data set's name; None for the run's own.
        split: "test" or "train".
        inference: how images are looked at; by default at a single scale.
        subset: how many images, evenly spread; None: all.
        broken_images: what to do about images that cannot be read.
        observe: called after each batch with the number of all.

    Raises:
        UserError: the data cannot be had, or have other classes.
    """
    inference = inference or Inference()
    found = _data(run, dataset, broken_images)
    batches = _batches(run, found, split, subset, broken_images)
    model = run.model().to(batches.device)
    number = len(batches)
    result = pixel_score(
        model,
        batches,
        found,
        run.recipe.precision,
        inference,
        observe=lambda: observe(number),
    )
    return PixelEvaluation(
        dataset=run.facts.name if dataset is None else dataset,
        split=split,
        inference=inference,
        score=result,
        class_names=run.facts.class_names,
        broken_images=len(batches.broken),
    )


@torch.no_grad()
def draw(
    run: FinishedRun,
    folder: Path,
    dataset: str | None = None,
    *,
    split: str = "test",
    inference: Inference | None = None,
    count: int = 4,
    broken_images: data.Policy = "stop",
) -> list[Path]:
    """Write pictures: image, labels and answers side by side, of images that are evenly spread.

    Args:
        run: the model, and what it was trained on.
        folder: where the pictures go, as 1.jpg, 2.jpg, ...
        dataset: as for :func:`evaluate_pixels`.
        split: likewise.
        inference: likewise.
        count: how many.
        broken_images: likewise.

    Returns:
        The files.

    Raises:
        UserError: as for :func:`evaluate_pixels`, or the folder cannot be written.
    """
    inference = inference or Inference()
    found = _data(run, dataset, broken_images)
    batches = _batches(run, found, split, count, broken_images)
    model = run.model().to(batches.device)
    overlay = Overlay(found.palette, found.ignore_index)
    files: list[Path] = []
    for images, targets in batches.epoch(torch.Generator()):
        with autocast(batches.device, run.recipe.precision):
            answers = inference.scores(model, images).argmax(1)
        pixels = _pixels(images[0], found)
        files.append(
            overlay.write(folder / f"{len(files) + 1}.jpg", pixels, targets[0], answers[0])
        )
    return files


def _data(run: FinishedRun, dataset: str | None, broken_images: data.Policy) -> Dataset:
    found = data.load(own_data(run) if dataset is None else dataset, broken=broken_images)
    if dataset is None:
        check_same(run, found, "--dataset")
    if found.task != "segmentation":
        raise UserError(f"{dataset}: is for classification, and the run's model segments")
    if found.class_names != run.facts.class_names:
        raise UserError(
            f"{dataset}: its classes are {', '.join(found.class_names[:5])}, ..., and the run's "
            f"{', '.join(run.facts.class_names[:5])}, ...; expected the same"
        )
    return dataclasses.replace(found, mean=run.facts.mean, std=run.facts.std)


def _batches(
    run: FinishedRun, found: Dataset, split: str, count: int | None, broken_images: data.Policy
) -> ImageBatches:
    pairs = found.train if split == "train" else found.test
    assert isinstance(pairs, PairSet)
    if count is not None:
        pairs = _spread(pairs, count)
    return data.batches(
        pairs,
        found,
        batch_size=1,
        device=choose_device("auto" if run.recipe.device == "cuda" else run.recipe.device),
        shuffle=False,
        augment=False,
        channels_last=run.recipe.channels_last,
        workers=run.recipe.workers,
        broken_images=broken_images,
    )


def _spread(pairs: PairSet, count: int) -> PairSet:
    """Pairs that are evenly spread."""
    count = min(count, len(pairs))
    chosen = [index * len(pairs) // count for index in range(count)]
    return PairSet(pairs.source, pairs.places[chosen], pairs.maps)


def _pixels(image: torch.Tensor, found: Dataset) -> torch.Tensor:
    """A normalized image as bytes (3, H, W)."""
    mean, std = (torch.tensor(v, device=image.device)[:, None, None] for v in _both(found))
    return ((image * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def _both(found: Dataset) -> Iterator[tuple[float, ...]]:
    yield found.mean
    yield found.std
