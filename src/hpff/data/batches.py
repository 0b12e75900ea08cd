"""Batches of normalized images, made on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hpff.data.augmentation import Choices, augment, draw
from hpff.data.dataset import Dataset
from hpff.data.image_set import ImageSet
from hpff.errors import UserError


class Batches:
    """One split as batches of (images float32 (B, C, H, W), labels int64 (B,)) on the device.

    The split is kept there as bytes. Raises UserError for a batch size below 1, for one that
    leaves no batch at all, and for images too small for the reflection that augments them.
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
    ) -> None:
        _check_batch_size(batch_size, len(images), drop_last)
        if augment:
            _check_padding(images, dataset)
        self.batch_size = batch_size
        self.device = torch.device(device)
        self._images = images.to(self.device)
        self._augmentation = dataset.augmentation if augment else None
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        mean = torch.tensor(dataset.mean, dtype=torch.float64)[:, None, None]
        std = torch.tensor(dataset.std, dtype=torch.float64)[:, None, None]
        self._scale = (1 / (255 * std)).to(self.device, torch.float32)
        self._shift = (-mean / std).to(self.device, torch.float32)

    def __len__(self) -> int:
        batches = len(self._images) / self.batch_size
        return math.floor(batches) if self._drop_last else math.ceil(batches)

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Return one pass over the split.

        Order, crops and flips of the whole pass are drawn in this call, from the generator alone:
        the same generator state gives the same batches, whatever the batch size and the device of
        the images.
        """
        count = len(self._images)
        order = torch.arange(count)
        if self._shuffle:
            order = torch.randperm(count, generator=generator, device=generator.device)
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
            yield self._normalize(images), self._images.labels[chosen]

    def _normalize(self, images: Tensor) -> Tensor:
        pixels = images.to(torch.float32, memory_format=self._memory_format)
        return pixels.mul_(self._scale).add_(self._shift)


def _check_batch_size(batch_size: int, count: int, drop_last: bool) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; expected 1 or more")
    if drop_last and batch_size > count:
        raise UserError(
            f"batch_size is {batch_size}, but there are only {count} images and a last, smaller "
            f"batch is dropped; expected a batch_size of at most {count}"
        )


def _check_padding(images: ImageSet, dataset: Dataset) -> None:
    padding, (_, height, width) = dataset.augmentation.padding, images.shape
    if dataset.augmentation.padding_mode == "reflect" and padding >= min(height, width):
        raise UserError(
            f"images of {height}x{width} cannot be reflected by {padding} pixels; "
            f"expected a padding below {min(height, width)}"
        )
