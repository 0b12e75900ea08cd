"""Batches of images and their labels that worker processes read, decode and augment."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from hpff.data.batches import Normalization, batch_count, check_batch_size
from hpff.data.broken import BrokenImages, Policy
from hpff.data.dataset import Dataset
from hpff.data.decode import BrokenImageError
from hpff.data.pair_augmentation import PairAugmentation
from hpff.data.pairs import PairSet
from hpff.data.streamed import default_workers
from hpff.errors import UserError

_LARGEST_SEED = 2**63 - 1

Item = tuple[int, int]  # A pair and the seed of its augmentation.


@dataclass(frozen=True)
class _Decoded:
    """What a worker hands over: bytes (B, 3, H, W) and (B, H, W), name and reason of the rest."""

    images: Tensor
    labels: Tensor
    broken: dict[str, str]

    def pin_memory(self) -> _Decoded:
        """Return the same in memory that a GPU can read while the program goes on."""
        return _Decoded(self.images.pin_memory(), self.labels.pin_memory(), self.broken)


class PairBatches:
    """`ImageBatches` of images and labels (B, H, W), by torch's DataLoader.

    In training all are crops of one size. In tests they are whole, one image a batch, as their
    sizes may differ.

    Args:
        pairs: the split.
        dataset: the one it belongs to: how it is normalized and augmented.
        batch_size: B, in training.
        device: of the batches.
        training: whether images are shuffled and cut to the size of training.
        augment: whether that is done at random; otherwise their middle is taken.
        steps: batches of a pass in training, which may go over the data several times or less than
            once; None: once, without a last, smaller batch.
        channels_last: whether the batches lie in memory with the channels last.
        workers: processes that read images; None: one for each core this one may use, at most 16;
            0: this process itself.
        broken_images: "stop" the run at an image that cannot be read, or "skip" it: leave it out
            of its batch.

    Raises:
        UserError: a batch size below 1 or one that leaves no batch at all. During a pass, an image
            cannot be read, labels do not fit, or no batch is left.
    """

    def __init__(
        self,
        pairs: PairSet,
        dataset: Dataset,
        *,
        batch_size: int,
        device: torch.device | str,
        training: bool,
        augment: bool,
        steps: int | None = None,
        channels_last: bool = False,
        workers: int | None = None,
        broken_images: Policy = "stop",
    ) -> None:
        check_batch_size(batch_size, len(pairs), drop_last=training and steps is None)
        self.batch_size = batch_size if training else 1
        self.device = torch.device(device)
        self._count = len(pairs)
        self._training = training
        self._steps = steps
        self._normalize = Normalization(dataset, self.device, channels_last=channels_last)
        self._broken = BrokenImages(broken_images)
        self._order = _Order(self.batch_size)
        augmentation = dataset.augmentation
        assert isinstance(augmentation, PairAugmentation)
        workers = default_workers() if workers is None else workers
        self._loader = DataLoader(
            _Decoding(pairs, augmentation if training else None, augment=augment),
            batch_size=None,  # A whole batch is what a worker is asked for.
            sampler=self._order,
            collate_fn=_itself,  # type: ignore[arg-type]
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            persistent_workers=workers > 0 and training,
            generator=torch.Generator(),  # Its own: torch's global one must not depend on it.
        )

    @property
    def broken(self) -> Mapping[str, str]:
        """Name to reason of the images left out so far."""
        return self._broken.found

    def __len__(self) -> int:
        if self._training and self._steps is not None:
            return self._steps
        return batch_count(self._count, self.batch_size, drop_last=self._training)

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Return one pass, as `ImageBatches.epoch` says."""
        wanted = len(self) * self.batch_size if self._training else self._count
        passes = math.ceil(wanted / self._count) if self._training else 0
        orders = [torch.randperm(self._count, generator=generator) for _ in range(passes)]
        order = torch.cat(orders)[:wanted] if orders else torch.arange(self._count)
        self._order.take(order, torch.randint(_LARGEST_SEED, (wanted,), generator=generator))
        return self._batches()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        made = False
        for decoded in self._loader:
            for where, reason in decoded.broken.items():
                self._broken.add(where, reason)
            if len(decoded.labels) < (2 if self._training else 1):
                continue
            made = True
            images = self._normalize(decoded.images.to(self.device, non_blocking=True))
            yield images, decoded.labels.to(self.device, non_blocking=True).long()
        if not made:
            name = next(iter(self.broken), "the data set")
            raise UserError(f"{name}: so many images cannot be read that no batch is left")


class _Order:
    """The batches of items of the next pass, for the DataLoader."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._order = self._seeds = torch.empty(0, dtype=torch.int64)

    def take(self, order: Tensor, seeds: Tensor) -> None:
        """Set the order of the pass, and the seed of each place in it."""
        self._order, self._seeds = order, seeds

    def __iter__(self) -> Iterator[list[Item]]:
        size = self._batch_size
        for chosen, seeds in zip(self._order.split(size), self._seeds.split(size), strict=True):
            yield list(zip(chosen.tolist(), seeds.tolist(), strict=True))


class _Decoding(TorchDataset[_Decoded]):
    """What runs in the workers."""

    def __init__(
        self, pairs: PairSet, augmentation: PairAugmentation | None, *, augment: bool
    ) -> None:
        self._pairs = pairs
        self._augmentation = augmentation
        self._augment = augment

    def __getitem__(self, items: Sequence[Item]) -> _Decoded:
        images, labels, broken = [], [], {}
        for index, seed in items:
            try:
                image, map_ = self._pairs.decoded(index)
            except BrokenImageError as error:
                broken[self._pairs.where(index)] = str(error)
                continue
            if self._augmentation is not None:
                image, map_ = (
                    self._augmentation.train(image, map_, seed)
                    if self._augment
                    else self._augmentation.middle(image, map_)
                )
            images.append(image)
            labels.append(map_)
        if not images:
            return _Decoded(torch.empty(0), torch.empty(0), broken)
        return _Decoded(torch.stack(images), torch.stack(labels), broken)


def _itself(decoded: _Decoded) -> _Decoded:
    return decoded
