"""Batches of normalized images, made on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hpff.data.augmentation import Augmentation, Choices, augment, draw
from hpff.data.dataset import Dataset
from hpff.data.image_set import ImageSet
from hpff.errors import UserError


class ImageBatches(Protocol):
    """One split as batches of (images float32 (B, C, H, W), labels int64 (B,)) on a device."""

    batch_size: int
    device: torch.device

    @property
    def broken(self) -> Mapping[str, str]:
        """Return name to reason of the images that were left out."""

    def __len__(self) -> int:
        """Return the number of batches."""

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Return one pass over the split.

        Order, crops and flips of the whole pass are drawn in this call, from the generator alone:
        the same generator state gives the same images, whatever the batch size, the number of
        workers and the device.

        Args:
            generator: on the CPU or on the device.
        """


class Normalization:
    """From bytes (B, C, H, W) to normalized float32 on the same device.

    Args:
        dataset: whose mean and deviation are used.
        device: of the images.
        channels_last: whether the result lies in memory with the channels last.
    """

    def __init__(self, dataset: Dataset, device: torch.device, *, channels_last: bool) -> None:
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        mean = torch.tensor(dataset.mean, dtype=torch.float64)[:, None, None]
        std = torch.tensor(dataset.std, dtype=torch.float64)[:, None, None]
        self._scale = (1 / (255 * std)).to(device, torch.float32)
        self._shift = (-mean / std).to(device, torch.float32)

    def __call__(self, images: Tensor) -> Tensor:
        pixels = images.to(torch.float32, memory_format=self._memory_format)
        return pixels.mul_(self._scale).add_(self._shift)


class Batches:
    """`ImageBatches` of a split in memory, which is kept on the device as bytes.

    Args:
        images: the split.
        dataset: the one it belongs to: how it is normalized and augmented.
        batch_size: B.
        device: where the images are kept and the batches made.
        shuffle: whether each pass has an order of its own.
        augment: whether images are cropped and flipped at random.
        drop_last: whether a last, smaller batch is left out.
        channels_last: whether the batches lie in memory with the channels last.
        image_size: pixels a side that images are resized to, bilinear with antialiasing; None: as
            they are.

    Raises:
        UserError: a batch size below 1 or one that leaves no batch at all, or images too small for
            the reflection that augments them.
    """

    def __init__(
        self,
        images: ImageSet,
        dataset: Dataset,
        *,
        batch_size: int,
        device: torch.device | str,
        shuffle: bool,
        augment: bool,
        drop_last: bool,
        channels_last: bool = False,
        image_size: int | None = None,
    ) -> None:
        check_batch_size(batch_size, len(images), drop_last=drop_last)
        augmentation = dataset.augmentation
        self._augmentation = augmentation if isinstance(augmentation, Augmentation) else None
        if not augment:
            self._augmentation = None
        if self._augmentation is not None:
            _check_padding(images, self._augmentation)
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.broken: Mapping[str, str] = {}
        self._images = images.to(self.device)
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._normalize = Normalization(dataset, self.device, channels_last=channels_last)
        self._size = None if image_size in (None, *images.shape[1:]) else image_size

    def __len__(self) -> int:
        return batch_count(len(self._images), self.batch_size, drop_last=self._drop_last)

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Return one pass, as `ImageBatches.epoch` says."""
        count = len(self._images)
        order = image_order(count, generator, shuffle=self._shuffle)
        choices = None
        if self._augmentation is not None:
            choices = draw(self._augmentation, count, generator).to(self.device)
        return self._batches(order.to(self.device), choices)

    def _batches(self, order: Tensor, choices: Choices | None) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            chosen = order[start : start + self.batch_size]
            images = self._images.images[chosen]
            if self._augmentation is not None and choices is not None:
                images = augment(images, choices[chosen], self._augmentation)
            yield self._resize(self._normalize(images)), self._images.labels[chosen]

    def _resize(self, pixels: Tensor) -> Tensor:
        if self._size is None:
            return pixels
        return F.interpolate(pixels, (self._size,) * 2, mode="bilinear", antialias=True)


def image_order(count: int, generator: torch.Generator, *, shuffle: bool) -> Tensor:
    """Return the order of a pass, int64 (count,), on the generator's device if it is shuffled."""
    if not shuffle:
        return torch.arange(count)
    return torch.randperm(count, generator=generator, device=generator.device)


def batch_count(images: int, batch_size: int, *, drop_last: bool) -> int:
    """Return how many batches a pass has."""
    return math.floor(images / batch_size) if drop_last else math.ceil(images / batch_size)


def check_batch_size(batch_size: int, count: int, *, drop_last: bool) -> None:
    """Refuse a batch size that cannot be.

    Raises:
        UserError: it is below 1, or leaves no batch at all of `count` images.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; expected 1 or more")
    if drop_last and batch_size > count:
        raise UserError(
            f"batch_size is {batch_size}, but there are only {count} images and a last, smaller "
            f"batch is dropped; expected a batch_size of at most {count}"
        )


def _check_padding(images: ImageSet, augmentation: Augmentation) -> None:
    padding, (_, height, width) = augmentation.padding, images.shape
    if augmentation.padding_mode == "reflect" and padding >= min(height, width):
        raise UserError(
            f"images of {height}x{width} cannot be reflected by {padding} pixels; "
            f"expected a padding below {min(height, width)}"
        )
