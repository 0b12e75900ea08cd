"""Batches of items that worker processes read and decode, by torch's DataLoader."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from hpff.data.broken import BrokenImages
from hpff.data.decode import BrokenImageError
from hpff.errors import UserError

LARGEST_SEED = 2**63 - 1
_MOST_WORKERS = 16

Item = tuple[int, int]  # An index and the seed of its augmentation.


@dataclass(frozen=True)
class Decoded:
    """What a worker hands over: images and labels, name and reason of the rest."""

    images: Tensor
    labels: Tensor
    broken: dict[str, str]

    def pin_memory(self) -> Decoded:
        """Return the same in memory that a GPU can read while the program goes on."""
        return Decoded(self.images.pin_memory(), self.labels.pin_memory(), self.broken)


class Decoding(TorchDataset[Decoded], ABC):
    """What runs in the workers."""

    @abstractmethod
    def decode(self, index: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return an image and its label or labels.

        Raises:
            BrokenImageError: it cannot be read.
        """

    @abstractmethod
    def where(self, index: int) -> str:
        """Return where an image lies, for messages."""

    def __getitem__(self, items: Sequence[Item]) -> Decoded:
        images, labels, broken = [], [], {}
        for index, seed in items:
            try:
                image, label = self.decode(index, seed)
            except BrokenImageError as error:
                broken[self.where(index)] = str(error)
                continue
            images.append(image)
            labels.append(label)
        if not images:
            return Decoded(torch.empty(0), torch.empty(0), broken)
        return Decoded(torch.stack(images), torch.stack(labels), broken)


class DecodedBatches:
    """Passes over decoded batches.

    Args:
        decoding: runs in the workers.
        batch_size: items in a batch.
        fewest: a batch that is left with fewer is passed over.
        workers: processes that read images; None: one for each core this one may use, at most 16;
            0: this process itself.
        pin: whether batches lie in memory that a GPU can read.
        stay: whether workers stay for the next pass.
        broken: takes in what cannot be read.
    """

    def __init__(
        self,
        decoding: Decoding,
        batch_size: int,
        *,
        fewest: int,
        workers: int | None,
        pin: bool,
        stay: bool,
        broken: BrokenImages,
    ) -> None:
        workers = default_workers() if workers is None else workers
        self._fewest = fewest
        self._broken = broken
        self._order = _Order(batch_size)
        self._loader = DataLoader(
            decoding,
            batch_size=None,  # A whole batch is what a worker is asked for.
            sampler=self._order,
            collate_fn=_itself,  # type: ignore[arg-type]
            num_workers=workers,
            pin_memory=pin,
            persistent_workers=workers > 0 and stay,
            generator=torch.Generator(),  # Its own: torch's global one must not depend on it.
        )

    def in_order(self, order: Tensor, seeds: Tensor) -> Iterator[Decoded]:
        """Return one pass: which items, and for each place the seed of its augmentation.

        Raises:
            UserError: in the pass: an image cannot be read, no batch is left, or a worker ends.
        """
        self._order.take(order, seeds)
        return self._pass()

    def _pass(self) -> Iterator[Decoded]:
        made = False
        for decoded in self._decoded():
            for where, reason in decoded.broken.items():
                self._broken.add(where, reason)
            if len(decoded.labels) >= self._fewest:
                made = True
                yield decoded
        if not made:
            name = next(iter(self._broken.found), "the data set")
            raise UserError(f"{name}: so many images cannot be read that no batch is left")

    def _decoded(self) -> Iterator[Decoded]:
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


class _Order:
    """The batches of items of the next pass, for the DataLoader."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._order = self._seeds = torch.empty(0, dtype=torch.int64)

    def take(self, order: Tensor, seeds: Tensor) -> None:
        self._order, self._seeds = order, seeds

    def __iter__(self) -> Iterator[list[Item]]:
        size = self._batch_size
        for chosen, seeds in zip(self._order.split(size), self._seeds.split(size), strict=True):
            yield list(zip(chosen.tolist(), seeds.tolist(), strict=True))


def default_workers() -> int:
    """Return the number of cores that this process may use, at most 16."""
    linux = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if linux else os.cpu_count() or 1
    return min(cores, _MOST_WORKERS)


def _itself(decoded: Decoded) -> Decoded:
    return decoded
