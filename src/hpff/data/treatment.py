"""How the images of a data set are normalized and augmented, as published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from hpff.data.augmentation import Augmentation
from hpff.data.image_set import ImageSet
from hpff.data.resized_crop import ResizedCrop
from hpff.errors import UserError, did_you_mean

TreatmentName = Literal["auto", "cifar", "svhn", "stl10", "imagenet", "plain"]
Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Treatment:
    """How images are augmented and normalized.

    Attributes:
        augmentation: of training images.
        mean: one value a channel, for pixels scaled to 0..1.
        std: the deviation, likewise.
    """

    augmentation: Augmentation | ResizedCrop
    mean: Numbers
    std: Numbers


_HALF = (0.5, 0.5, 0.5)
PUBLISHED = {
    "cifar": Treatment(
        Augmentation(padding=4, padding_mode="reflect", flip=True),
        mean=(125.3 / 255, 123.0 / 255, 113.9 / 255),
        std=(63.0 / 255, 62.1 / 255, 66.7 / 255),
    ),
    "svhn": Treatment(Augmentation(padding=2, padding_mode="zeros", flip=False), _HALF, _HALF),
    "stl10": Treatment(Augmentation(padding=4, padding_mode="zeros", flip=True), _HALF, _HALF),
    "imagenet": Treatment(ResizedCrop(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
_CIFAR_SHAPE = (3, 32, 32)


def treatment_of(images: ImageSet, name: str) -> Treatment:
    """Return the treatment of that name for images that are in memory.

    Args:
        images: the training split.
        name: a key of `PUBLISHED`; or "plain", which has the statistics of these images, and crops
            of images padded with zeros by an eighth of the shorter side, without flips; or "auto",
            which is "cifar" for images of 3x32x32 and otherwise "plain".

    Raises:
        UserError: the treatment is for another number of channels.
    """
    if name == "auto":
        name = "cifar" if images.shape == _CIFAR_SHAPE else "plain"
    if name == "plain":
        padding = min(images.shape[1:]) // 8
        crops = Augmentation(padding, "zeros", flip=False)
        return Treatment(crops, *channel_statistics(images))
    treatment = PUBLISHED[name]
    if len(treatment.mean) != images.shape[0]:
        raise UserError(
            f"treatment is {name}, which is for images of {len(treatment.mean)} channels, but "
            f"these have {images.shape[0]}; expected treatment=plain"
        )
    return treatment


def check_treatment(name: str) -> None:
    """Refuse a name that is none of a treatment.

    Raises:
        UserError: there is no such treatment.
    """
    if name not in get_args(TreatmentName):
        known = get_args(TreatmentName)
        hint = did_you_mean(str(name), known)
        raise UserError(f'treatment is "{name}"; expected one of {", ".join(known)}{hint}')


def channel_statistics(images: ImageSet) -> tuple[Numbers, Numbers]:
    """Measure each channel, for pixels scaled to 0..1.

    Returns:
        The means and the standard deviations, one a channel; a channel that never changes gets the
        deviation 1.
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
