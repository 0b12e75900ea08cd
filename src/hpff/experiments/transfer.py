"""A trained model on another data set or split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hpff import data
from hpff.data import Dataset, EncodedSet, ImageSet
from hpff.data.classes import Matching, shared_classes, with_classes
from hpff.errors import UserError
from hpff.runs.finished_run import FinishedRun
from hpff.runs.run_data import check_same, own_data
from hpff.training.evaluation import Score, score
from hpff.training.setup import choose_device


@dataclass(frozen=True)
class Transfer:
    """A score, and how it came about.

    `classes` are the data set's class names and the run's, pair by pair, that were scored;
    `protocol` says in words what was done to images and classes.
    """

    dataset: str
    split: str
    score: Score
    classes: tuple[tuple[str, str], ...]
    protocol: str
    broken_images: int

    def to_plain(self) -> dict[str, Any]:
        """Everything as plain data."""
        top5 = self.score.top5_error
        return {
            "dataset": self.dataset,
            "split": self.split,
            "images": self.score.images,
            "broken_images": self.broken_images,
            "top1_error_percent": self.score.error,
            "top1_accuracy_percent": 100 - self.score.error,
            "top5_error_percent": top5,
            "top5_accuracy_percent": None if top5 is None else 100 - top5,
            "loss": self.score.loss,
            "protocol": self.protocol,
            "classes": [list(pair) for pair in self.classes],
        }


def transfer(
    run: FinishedRun,
    dataset: str | None = None,
    *,
    split: str = "test",
    matching: Matching = "name",
    class_names: Sequence[str] | None = None,
    treatment: str | None = None,
    broken_images: data.Policy = "stop",
    observe: Callable[[int], None] = lambda _: None,
) -> Transfer:
    """Score a run's model on a data set, by default its own.

    Images are resized to the size of training and normalized as in training. With "name" the
    images of the classes that both sides have are scored; with "position" label i of the data set
    is the run's class i, whatever their names. Answers are among all of the run's classes.

    Args:
        run: the model, and what it was trained on.
        dataset: a data set's name; None for the run's own.
        split: "test" or "train".
        matching: "name" or "position".
        class_names: the run's classes in order, for a run whose data did not name them.
        treatment: as in a recipe; by default the run's for its own data, otherwise "auto".
        broken_images: what to do about images that cannot be read.
        observe: called after each batch with the number of all.

    Raises:
        UserError: the data cannot be had, or their classes or images do not fit.
    """
    names = _names(run, class_names)
    name = run.facts.name if dataset is None else dataset
    usual = run.recipe.treatment if name == run.facts.name else "auto"
    where = own_data(run) if dataset is None else name
    found = data.load(where, treatment=treatment or usual, broken=broken_images)
    if dataset is None:
        check_same(run, found, "--dataset")
    if found.task != "classification":
        raise UserError(f"{name}: is for segmentation, and the run's model classifies images")
    classes = _match(name, found.class_names, names, matching)
    images = with_classes(found.train if split == "train" else found.test, classes)
    if not len(images):
        raise UserError(f"{name}: its {split} split has no image of a class that the run knows")
    size = _image_size(name, found, images, run.facts.image_shape)
    normalized = dataclasses.replace(found, mean=run.facts.mean, std=run.facts.std)
    device = choose_device("auto" if run.recipe.device == "cuda" else run.recipe.device)
    batches = data.batches(
        images,
        normalized,
        batch_size=run.recipe.batch_size,
        device=device,
        shuffle=False,
        augment=False,
        drop_last=False,
        channels_last=run.recipe.channels_last,
        image_size=size,
        workers=run.recipe.workers,
        broken_images=broken_images,
    )
    model = run.model().to(device)
    number = len(batches)
    result = score(
        model, batches, len(names), run.recipe.precision, observe=lambda: observe(number)
    )
    return Transfer(
        dataset=name,
        split=split,
        score=result,
        classes=tuple((found.class_names[theirs], names[ours]) for theirs, ours in classes.items()),
        protocol=_protocol(found, images, run, classes, names, matching),
        broken_images=len(found.broken) + len(batches.broken),
    )


def _names(run: FinishedRun, given: Sequence[str] | None) -> tuple[str, ...]:
    names = run.facts.class_names
    if given is None:
        return names
    if len(given) != len(names):
        raise UserError(
            f"{run.path}: {len(given)} class names were given for its {len(names)} classes; "
            "expected one for each"
        )
    return tuple(given)


def _match(
    dataset: str, theirs: Sequence[str], ours: Sequence[str], matching: Matching
) -> dict[int, int]:
    if matching == "position":
        if len(theirs) != len(ours):
            raise UserError(
                f"{dataset}: has {len(theirs)} classes and the run {len(ours)}; matching by "
                "position expects as many"
            )
        return {index: index for index in range(len(ours))}
    classes = shared_classes(theirs, ours)
    if not classes:
        raise UserError(
            f"{dataset}: shares no class with the run by name ({', '.join(theirs[:5])}, ... and "
            f"{', '.join(ours[:5])}, ...); name the run's by --class-names, or match by position"
        )
    return classes


def _image_size(
    dataset: str,
    found: Dataset,
    images: ImageSet | EncodedSet,
    wanted: tuple[int, int, int],
) -> int | None:
    channels, height, width = found.image_shape()
    if channels != wanted[0]:
        raise UserError(
            f"{dataset}: its images have {channels} channels, and the run's {wanted[0]}; expected "
            "as many"
        )
    if isinstance(images, ImageSet) and (height, width) == wanted[1:]:
        return None
    if wanted[1] != wanted[2]:
        raise UserError(
            f"{dataset}: its images are {height}x{width}, and the run's {wanted[1]}x{wanted[2]}; "
            "only square ones can be resized to"
        )
    return wanted[1]


def _protocol(
    found: Dataset,
    images: ImageSet | EncodedSet,
    run: FinishedRun,
    classes: dict[int, int],
    names: Sequence[str],
    matching: Matching,
) -> str:
    _, height, width = run.facts.image_shape
    if isinstance(images, EncodedSet):
        sizes = f"images resized and their middle {height}x{width} taken"
    elif images.shape[1:] == (height, width):
        sizes = f"images of {height}x{width} as they are"
    else:
        before = "x".join(map(str, images.shape[1:]))
        sizes = f"images resized from {before} to {height}x{width} (bilinear, antialiased)"
    matched = f"{len(classes)} classes matched by {matching}"
    lost = [name for index, name in enumerate(found.class_names) if index not in classes]
    unused = [name for index, name in enumerate(names) if index not in classes.values()]
    if lost:
        matched += f", images of {_listed(lost)} left out"
    if unused:
        matched += f", no images of {_listed(unused)}"
    return (
        f"{matched}; {sizes}; normalized as in training; answers among all {len(names)} classes "
        "of the run"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
