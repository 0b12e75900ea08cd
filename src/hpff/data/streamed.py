"""Batches of images that worker processes read, decode and crop."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from hpff.data.batches import Normalization, batch_count, check_batch_size, image_order
from hpff.data.broken import BrokenImages, Policy
from hpff.data.dataset import Dataset
from hpff.data.decode import BrokenImageError, Pixels
from hpff.data.encoded_set import EncodedSet
from hpff.data.resized_crop import ResizedCrop
from hpff.errors import UserError

_MOST_WORKERS = 16
_LARGEST_SEED = 2**63 - 1

Item = tuple[int, int]  # An image and the seed of its crop.


@dataclass(frozen=True)
class _Decoded:
    """What a worker hands over: bytes (B, H, W, 3), labels (B,), name and reason of the rest."""

    images: Tensor
    labels: Tensor
    broken: dict[str, str]

    def pin_memory(self) -> _Decoded:
        """Return the same in memory that a GPU can read while the program goes on."""
        return _Decoded(self.images.pin_memory(), self.labels.pin_memory(), self.broken)


class StreamedBatches:
    """`ImageBatches` of a split of encoded images, by torch's DataLoader.

    A training batch that is left with fewer than two images is passed over.

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
    ) -> None:
        check_batch_size(batch_size, len(images), drop_last=drop_last)
        self.batch_size = batch_size
        self.device = torch.device(device)
        self._count = len(images)
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._fewest = 2 if drop_last else 1
        self._normalize = Normalization(dataset, self.device, channels_last=channels_last)
        self._broken = BrokenImages(broken_images)
        self._order = _Order(batch_size)
        self._loader = _loader(
            _Decoding(images, _crop(dataset, image_size), augment=augment),
            self._order,
            default_workers() if workers is None else workers,
            pin=self.device.type == "cuda",
            stay=shuffle,
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
        seeds = torch.randint(_LARGEST_SEED, (self._count,), generator=generator)
        self._order.take(order[: len(self) * self.batch_size], seeds)
        return self._batches()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        made = False
        for decoded in self._decoded():
            for where, reason in decoded.broken.items():
                self._broken.add(where, reason)
            if len(decoded.labels) < self._fewest:
                continue
            made = True
            images = decoded.images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
            yield self._normalize(images), decoded.labels.to(self.device, non_blocking=True)
        if not made:
            name = next(iter(self.broken), "the data set")
            raise UserError(f"{name}: so many images cannot be read that no batch is left")

    def _decoded(self) -> Iterator[_Decoded]:
        try:
            yield from self._loader
        except RuntimeError as error:
            if "worker" not in str(error):
                raise
            reason = " ".join(str(error).split())
            raise UserError(
                f"a process that reads images ended ({reason}); expected memory enough for all of "
                "them, shared memory too; try a smaller number of workers"
            ) from error


def default_workers() -> int:
    """Return the number of cores that this process may use, at most 16."""
    linux = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if linux else os.cpu_count() or 1
    return min(cores, _MOST_WORKERS)


class _Order:
    """The batches of items of the next pass, for the DataLoader."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._order = self._seeds = torch.empty(0, dtype=torch.int64)

    def take(self, order: Tensor, seeds: Tensor) -> None:
        """Set the order of the pass; seeds are by image."""
        self._order, self._seeds = order, seeds

    def __iter__(self) -> Iterator[list[Item]]:
        for chosen in self._order.split(self._batch_size):
            yield list(zip(chosen.tolist(), self._seeds[chosen].tolist(), strict=True))


class _Decoding(TorchDataset[_Decoded]):
    """What runs in the workers."""

    def __init__(self, images: EncodedSet, crop: ResizedCrop, *, augment: bool) -> None:
        self._images = images
        self._crop = crop
        self._augment = augment

    def __getitem__(self, items: Sequence[Item]) -> _Decoded:
        pixels, labels, broken = [], [], {}
        for index, seed in items:
            try:
                pixels.append(torch.from_numpy(self._decode(index, seed).copy()))
            except BrokenImageError as error:
                broken[self._images.where(index)] = str(error)
                continue
            labels.append(self._images.labels[index])
        if not pixels:
            return _Decoded(torch.empty(0), torch.empty(0), broken)
        return _Decoded(torch.stack(pixels), torch.stack(labels), broken)

    def _decode(self, index: int, seed: int) -> Pixels:
        encoded = self._images.read(index)
        return self._crop.train(encoded, seed) if self._augment else self._crop.test(encoded)


def _crop(dataset: Dataset, image_size: int | None) -> ResizedCrop:
    crop = dataset.augmentation
    assert isinstance(crop, ResizedCrop)
    return crop if image_size is None else dataclasses.replace(crop, size=image_size)


def _loader(
    decoding: _Decoding, order: _Order, workers: int, *, pin: bool, stay: bool
) -> DataLoader[_Decoded]:
    return DataLoader(
        decoding,
        batch_size=None,  # A whole batch is what a worker is asked for.
        sampler=order,
        collate_fn=_itself,  # type: ignore[arg-type]
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=workers > 0 and stay,
        generator=torch.Generator(),  # Its own: torch's global one must not depend on it.
    )


def _itself(decoded: _Decoded) -> _Decoded:
    return decoded
