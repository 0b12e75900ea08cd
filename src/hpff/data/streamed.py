"""Batches of images that worker processes read, decode and crop."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from hpff.data.batches import Normalization, batch_count, check_batch_size, image_order
from hpff.data.broken import BrokenImages, Policy
from hpff.data.dataset import Dataset
from hpff.data.decoding import LARGEST_SEED, Decoded, DecodedBatches, Decoding
from hpff.data.encoded_set import EncodedSet
from hpff.data.resized_crop import ResizedCrop


class StreamedBatches:
    """`ImageBatches` of a split of encoded images, by torch's DataLoader.

    A training batch that is left with fewer than two images a share is passed over.

    Args:
        images: the split.
        dataset: the one it belongs to: how it is normalized and cropped.
        batch_size: B.
        device: of the batches.
        shuffle: whether each pass has an order of its own.
        augment: whether images are cropped and flipped at random, or cut to their middle.
        drop_last: whether a last, smaller batch is left out.
        channels_last: whether the batches lie in memory with the channels last.
        image_size: pixels a side; None: as the data set says.
        workers: processes that read images; None: one for each core this one may use, at most 16;
            0: this process itself.
        broken_images: "stop" the run at an image that cannot be read, or "skip" it: leave it out
            of its batch.
        shares: into how many parts a training batch is divided.

    Raises:
        UserError: a batch size below 1 or one that leaves no batch at all. During a pass, an image
            cannot be read, no batch is left, or a worker ends.
    """

    def __init__(
        self,
        images: EncodedSet,
        dataset: Dataset,
        *,
        batch_size: int,
        device: torch.device | str,
        shuffle: bool,
        augment: bool,
        drop_last: bool,
        channels_last: bool = False,
        image_size: int | None = None,
        workers: int | None = None,
        broken_images: Policy = "stop",
        shares: int = 1,
    ) -> None:
        check_batch_size(batch_size, len(images), drop_last=drop_last)
        self.batch_size = batch_size
        self.device = torch.device(device)
        self._count = len(images)
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._normalize = Normalization(dataset, self.device, channels_last=channels_last)
        self._broken = BrokenImages(broken_images)
        self._decoded = DecodedBatches(
            _DecodingImages(images, _crop(dataset, image_size), augment=augment),
            batch_size,
            fewest=2 * shares if drop_last else 1,
            workers=workers,
            pin=self.device.type == "cuda",
            stay=shuffle,
            broken=self._broken,
        )

    @property
    def broken(self) -> Mapping[str, str]:
        """Name to reason of the images left out so far."""
        return self._broken.found

    def __len__(self) -> int:
        return batch_count(self._count, self.batch_size, drop_last=self._drop_last)

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Return one pass, as `ImageBatches.epoch` says."""
        order = image_order(self._count, generator, shuffle=self._shuffle)
        seeds = torch.randint(LARGEST_SEED, (self._count,), generator=generator)
        order = order[: len(self) * self.batch_size]
        return map(self._on_device, self._decoded.in_order(order, seeds[order]))

    def _on_device(self, decoded: Decoded) -> tuple[Tensor, Tensor]:
        images = decoded.images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        return self._normalize(images), decoded.labels.to(self.device, non_blocking=True)


class _DecodingImages(Decoding):
    def __init__(self, images: EncodedSet, crop: ResizedCrop, *, augment: bool) -> None:
        self._images = images
        self._crop = crop
        self._augment = augment

    def decode(self, index: int, seed: int) -> tuple[Tensor, Tensor]:
        encoded = self._images.read(index)
        pixels = self._crop.train(encoded, seed) if self._augment else self._crop.test(encoded)
        return torch.from_numpy(pixels.copy()), self._images.labels[index]

    def where(self, index: int) -> str:
        return self._images.where(index)


def _crop(dataset: Dataset, image_size: int | None) -> ResizedCrop:
    crop = dataset.augmentation
    assert isinstance(crop, ResizedCrop)
    return crop if image_size is None else dataclasses.replace(crop, size=image_size)
