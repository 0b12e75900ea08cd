"""A data set with all that training on it needs to know."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hpff.data.augmentation import Augmentation
from hpff.data.image_set import ImageSet

CIFAR_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
CIFAR_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)
CIFAR_AUGMENTATION = Augmentation(padding=4, padding_mode="reflect", flip=True)


@dataclass(frozen=True, eq=False)
class Dataset:
    """The two splits, and how they are normalized and augmented.

    `mean` and `std` hold one value a channel, for pixels scaled to 0..1.
    """

    name: str
    train: ImageSet
    test: ImageSet
    num_classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation


def channel_statistics(images: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return each channel's mean and standard deviation, for pixels scaled to 0..1.

    A channel that never changes gets the deviation 1.
    """
    channels = images.shape[0]
    counts = torch.zeros(channels, 256, dtype=torch.int64)
    for part in images.images.split(4096):
        for channel, pixels in enumerate(part.unbind(1)):
            counts[channel] += torch.bincount(pixels.flatten(), minlength=256).cpu()
    shares = counts.double() / counts.sum(1, keepdim=True)
    levels = torch.arange(256, dtype=torch.float64) / 255
    means = (shares * levels).sum(1)
    deviations = (shares * (levels - means[:, None]).square()).sum(1).sqrt()
    return tuple(means.tolist()), tuple(value or 1.0 for value in deviations.tolist())
