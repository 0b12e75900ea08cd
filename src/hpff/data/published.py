"""What is known of the data sets of the paper without having them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hpff.data.dataset import Dataset
from hpff.data.image_set import ImageSet
from hpff.data.treatment import PUBLISHED

DIGITS = tuple(str(digit) for digit in range(10))


@dataclass(frozen=True)
class PublishedDataset:
    """A data set's published facts.

    Attributes:
        title: its name as people write it.
        shape: (C, H, W) of an image as a model sees it.
        num_classes: how many classes there are.
        train: number of training images.
        test: number of test images.
        treatment: a key of `PUBLISHED`.
        source: where it comes from.
        class_names: one a class, where they are known without the data.
    """

    title: str
    shape: tuple[int, int, int]
    num_classes: int
    train: int
    test: int
    treatment: str
    source: str
    class_names: tuple[str, ...] = ()

    def __str__(self) -> str:
        _, height, width = self.shape
        return (
            f"{self.title}, {height}x{width} color, {self.num_classes} classes, "
            f"{self.train} + {self.test} images, {self.source}"
        )


_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_STL10 = "airplane bird car cat deer dog horse monkey ship truck"
_LOADED = "downloaded"

PUBLISHED_DATASETS = {
    "cifar10": PublishedDataset(
        "CIFAR-10", (3, 32, 32), 10, 50_000, 10_000, "cifar", _LOADED, tuple(_CIFAR10.split())
    ),
    "cifar100": PublishedDataset("CIFAR-100", (3, 32, 32), 100, 50_000, 10_000, "cifar", _LOADED),
    "svhn": PublishedDataset("SVHN", (3, 32, 32), 10, 73_257, 26_032, "svhn", _LOADED, DIGITS),
    "stl10": PublishedDataset(
        "STL-10", (3, 96, 96), 10, 5_000, 8_000, "stl10", _LOADED, tuple(_STL10.split())
    ),
    "imagenet": PublishedDataset(
        "ImageNet", (3, 224, 224), 1000, 1_281_167, 50_000, "imagenet", "yours, in imagenet/"
    ),
}


def blank(name: str, image_size: int | None = None) -> Dataset:
    """Return a data set of the paper with its published sizes, but without what its images show.

    Under torch's FakeTensorMode it takes no memory.

    Args:
        name: a key of `PUBLISHED_DATASETS`.
        image_size: pixels a side of ImageNet's images, 224 by default.
    """
    outline = PUBLISHED_DATASETS[name]
    treatment = PUBLISHED[outline.treatment]
    channels, height, width = outline.shape
    if outline.treatment == "imagenet" and image_size:
        height = width = image_size
    train, test = (
        ImageSet(
            torch.zeros(count, channels, height, width, dtype=torch.uint8),
            torch.zeros(count, dtype=torch.int64),
        )
        for count in (outline.train, outline.test)
    )
    names = outline.class_names or tuple(str(index) for index in range(outline.num_classes))
    return Dataset(
        name=name,
        train=train,
        test=test,
        num_classes=outline.num_classes,
        class_names=names,
        mean=treatment.mean,
        std=treatment.std,
        augmentation=treatment.augmentation,
    )
