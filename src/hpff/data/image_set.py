"""Labeled images, held as bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpff.errors import UserError


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images and their labels, on one device.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).

    Raises:
        UserError: shapes, types or lengths are others.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise UserError(
                f"images are {_describe(self.images)}; expected uint8 of shape (N, C, H, W)"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise UserError(
                f"labels are {_describe(self.labels)}; "
                f"expected int64 of shape ({len(self.images)},), one for each image"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (C, H, W) of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device | str) -> ImageSet:
        """Return the same set on the device."""
        return ImageSet(self.images.to(device), self.labels.to(device))

    def subset(self, n: int, seed: int = 0) -> ImageSet:
        """Return n images, as many of each class as there are, give or take one.

        After a shuffle by the seed, the classes take turns; a class that runs out leaves its turns
        to the others. So subset(m) is the start of subset(n) for m < n.

        Raises:
            UserError: n is below 1 or above the number of images.
        """
        return self._at(class_by_class(self.labels.cpu(), n, seed))

    def without(self, n: int, seed: int = 0) -> ImageSet:
        """Return the images that ``subset(n, seed)`` leaves, if it leaves any.

        Raises:
            UserError: n is below 1, or not below the number of images.
        """
        check_share(n, len(self))
        return self._at(class_by_class(self.labels.cpu(), len(self), seed)[n:])

    def _at(self, chosen: Tensor) -> ImageSet:
        chosen = chosen.to(self.labels.device)
        return ImageSet(self.images[chosen], self.labels[chosen])


def check_share(n: int, count: int) -> None:
    """Raise UserError unless n of some images can be taken away so that others stay."""
    if not 1 <= n < count:
        raise UserError(f"{n} of {count} training images were to be held out; expected fewer")


def class_by_class(labels: Tensor, n: int, seed: int) -> Tensor:
    """Choose n labels, shuffled by the seed, so that the classes take turns.

    Args:
        labels: int64 (N,), on the CPU.
        n: how many to choose.
        seed: of the shuffle.

    Returns:
        Their indices, int64 (n,).

    Raises:
        UserError: n is below 1 or above the number of labels.
    """
    if not 1 <= n <= len(labels):
        raise UserError(f"a subset of {n} images was asked for; expected 1 to {len(labels)}")
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels[by_class].unique_consecutive(return_counts=True)[1]
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    turn = torch.arange(len(labels)) - starts
    return by_class[turn.argsort(stable=True)][:n]


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
