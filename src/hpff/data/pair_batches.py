"""Batches of images and their labels that worker processes read, decode and augment."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from hpff.data.batches import Normalization, batch_count, check_batch_size
from hpff.data.broken import BrokenImages, Policy
from hpff.data.dataset import Dataset
from hpff.data.decoding import LARGEST_SEED, Decoded, DecodedBatches, Decoding
from hpff.data.pair_augmentation import PairAugmentation
from hpff.data.pairs import PairSet


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
            cannot be read, labels do not fit, no batch is left, or a worker ends.
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
        augmentation = dataset.augmentation
        assert isinstance(augmentation, PairAugmentation)
        self._decoded = DecodedBatches(
            _DecodingPairs(pairs, augmentation if training else None, augment=augment),
            self.batch_size,
            fewest=2 if training else 1,
            workers=workers,
            pin=self.device.type == "cuda",
            stay=training,
            broken=self._broken,
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
        seeds = torch.randint(LARGEST_SEED, (wanted,), generator=generator)
        return map(self._on_device, self._decoded.in_order(order, seeds))

    def _on_device(self, decoded: Decoded) -> tuple[Tensor, Tensor]:
        images = self._normalize(decoded.images.to(self.device, non_blocking=True))
        return images, decoded.labels.to(self.device, non_blocking=True).long()


class _DecodingPairs(Decoding):
    def __init__(
        self, pairs: PairSet, augmentation: PairAugmentation | None, *, augment: bool
    ) -> None:
        self._pairs = pairs
        self._augmentation = augmentation
        self._augment = augment

    def decode(self, index: int, seed: int) -> tuple[Tensor, Tensor]:
        image, labels = self._pairs.decoded(index)
        if self._augmentation is None:
            return image, labels
        if self._augment:
            return self._augmentation.train(image, labels, seed)
        return self._augmentation.middle(image, labels)

    def where(self, index: int) -> str:
        return self._pairs.where(index)
