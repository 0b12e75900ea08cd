"""Handwritten digits, 8x8 gray, embedded in scikit-learn."""

from __future__ import annotations

import torch

from hpff.data.augmentation import Augmentation
from hpff.data.dataset import Dataset
from hpff.data.image_set import ImageSet
from hpff.data.treatment import channel_statistics

_LARGEST_INK = 16


def load_digits() -> Dataset:
    """Return 1437 training and 360 test images, always the same.

    With the images sorted by class, every fifth is a test image.
    """
    from sklearn.datasets import load_digits as embedded

    bunch = embedded()
    ink = torch.from_numpy(bunch.images)[:, None]
    images = (ink * 255 / _LARGEST_INK).round().to(torch.uint8)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    by_class = labels.argsort(stable=True)
    is_test = torch.arange(len(labels)) % 5 == 0
    train, test = (ImageSet(images[part], labels[part]) for part in _split(by_class, is_test))
    mean, std = channel_statistics(train)
    return Dataset(
        name="digits",
        train=train,
        test=test,
        num_classes=10,
        class_names=tuple(str(digit) for digit in range(10)),
        mean=mean,
        std=std,
        augmentation=Augmentation(padding=1, padding_mode="zeros", flip=False),
    )


def _split(indices: torch.Tensor, is_test: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return indices[~is_test].sort().values, indices[is_test].sort().values
