"""Images with a label at each pixel, as encoded pairs on disk or in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from hpff.data.decode import Pixels, broken_if_unreadable, opened
from hpff.data.encoded_set import Packed
from hpff.data.image_set import check_share
from hpff.data.label_maps import LabelMaps
from hpff.errors import UserError

Pair = tuple[bytes, bytes]


class PairSource(Protocol):
    """Where encoded images and their label maps are."""

    def __len__(self) -> int:
        """Return how many pairs there are."""

    def read(self, index: int) -> Pair:
        """Return the bytes of an image and of its label map.

        Raises:
            OSError: they cannot be had.
        """

    def where(self, index: int) -> str:
        """Name the image, for messages."""

    def where_labels(self, index: int) -> str:
        """Name the label map, for messages."""


class PairFiles:
    """Pairs of files, by their paths."""

    def __init__(self, pairs: Iterable[tuple[Path, Path]]) -> None:
        self._paths = list(pairs)

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> Pair:
        image, labels = self._paths[index]
        return image.read_bytes(), labels.read_bytes()

    def where(self, index: int) -> str:
        return str(self._paths[index][0])

    def where_labels(self, index: int) -> str:
        return str(self._paths[index][1])


class PackedPairs:
    """Pairs in memory.

    Args:
        pairs: of encoded images and label maps.
        names: of each pair, for messages.
    """

    def __init__(self, pairs: Sequence[Pair], names: Sequence[str]) -> None:
        self._images = Packed(image for image, _ in pairs)
        self._labels = Packed(labels for _, labels in pairs)
        self._names = list(names)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> Pair:
        return self._images[index], self._labels[index]

    def where(self, index: int) -> str:
        return self._names[index]

    def where_labels(self, index: int) -> str:
        return f"{self._names[index]}, its labels"


@dataclass(frozen=True, eq=False)
class PairSet:
    """N images of a source, and their label maps.

    Attributes:
        source: where they are.
        places: int64 (N,), their numbers in the source.
        maps: how label maps are read.
    """

    source: PairSource
    places: Tensor
    maps: LabelMaps

    @classmethod
    def whole(cls, source: PairSource, maps: LabelMaps) -> PairSet:
        """Return all pairs of a source, in order."""
        return cls(source, torch.arange(len(source)), maps)

    def __len__(self) -> int:
        return len(self.places)

    def subset(self, n: int, seed: int = 0) -> PairSet:
        """Return n pairs, those that come first in a shuffle by the seed.

        Raises:
            UserError: n is below 1 or above the number of pairs.
        """
        if not 1 <= n <= len(self):
            raise UserError(f"a subset of {n} images was asked for; expected 1 to {len(self)}")
        return PairSet(self.source, self._shuffled(seed)[:n], self.maps)

    def without(self, n: int, seed: int = 0) -> PairSet:
        """Return the pairs that ``subset(n, seed)`` leaves, if it leaves any.

        Raises:
            UserError: n is below 1, or not below the number of pairs.
        """
        check_share(n, len(self))
        return PairSet(self.source, self._shuffled(seed)[n:], self.maps)

    def _shuffled(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return self.places[torch.randperm(len(self), generator=generator)]

    def where(self, index: int) -> str:
        """Name an image, for messages."""
        return self.source.where(int(self.places[index]))

    def read(self, index: int) -> Pair:
        """Return the bytes of a pair.

        Raises:
            BrokenImageError: they cannot be had.
        """
        with broken_if_unreadable("the image or its labels"):
            return self.source.read(int(self.places[index]))

    def decoded(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an image, uint8 (3, H, W), and its labels, uint8 (H, W).

        Raises:
            BrokenImageError: one of them cannot be had.
            UserError: the labels do not fit; the message names their file.
        """
        image, labels = self.read(index)
        with opened(image) as found:
            pixels = torch.from_numpy(_rgb(found)).permute(2, 0, 1).contiguous()
        where = self.source.where_labels(int(self.places[index]))
        return pixels, self.maps.decode(labels, where, (pixels.shape[1], pixels.shape[2]))


def _rgb(image: object) -> Pixels:
    import numpy as np

    return np.array(image.convert("RGB"))  # type: ignore[attr-defined]
