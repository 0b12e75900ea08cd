"""Labeled images as encoded bytes, on disk or in memory, decoded when they are wanted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hpff.data.broken import BrokenImages
from hpff.data.decode import BrokenImageError, Shape, broken_if_unreadable, decode
from hpff.data.image_set import ImageSet, check_share, class_by_class
from hpff.errors import UserError


class Packed(Sequence[bytes]):
    """A list of bytes in two tensors: workers share it, and no reference count writes to it."""

    def __init__(self, items: Iterable[bytes]) -> None:
        content, ends = bytearray(), []
        for item in items:
            content += item
            ends.append(len(content))
        self._bytes = torch.frombuffer(content, dtype=torch.uint8) if content else _EMPTY
        self._ends = torch.tensor([0, *ends], dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]
        start, end = self._ends[index].item(), self._ends[index + 1].item()
        return self._bytes[start:end].numpy().tobytes()


_EMPTY = torch.empty(0, dtype=torch.uint8)


class Source(Protocol):
    """Where encoded images are."""

    def read(self, index: int) -> bytes:
        """Return the image's bytes.

        Raises:
            OSError: they cannot be had.
        """

    def where(self, index: int) -> str:
        """Name the image, for messages."""


class Files:
    """Image files below a folder, by their relative paths."""

    def __init__(self, folder: Path, paths: Iterable[str]) -> None:
        self._folder = folder
        self._paths = Packed(path.encode("utf-8", "surrogateescape") for path in paths)

    def read(self, index: int) -> bytes:
        return self._path(index).read_bytes()

    def where(self, index: int) -> str:
        return str(self._path(index))

    def _path(self, index: int) -> Path:
        return self._folder / self._paths[index].decode("utf-8", "surrogateescape")


@dataclass(frozen=True, eq=False)
class EncodedSet:
    """N images of a source.

    Attributes:
        source: where they are.
        labels: int64 (N,).
        places: int64 (N,), their numbers in the source.
    """

    source: Source
    labels: Tensor
    places: Tensor

    @classmethod
    def whole(cls, source: Source, labels: Tensor) -> EncodedSet:
        """Return all images of a source, in order."""
        return cls(source, labels, torch.arange(len(labels)))

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """Return the bytes of an image.

        Raises:
            BrokenImageError: they cannot be had.
        """
        with broken_if_unreadable("the image"):
            return self.source.read(int(self.places[index]))

    def where(self, index: int) -> str:
        """Name an image, for messages."""
        return self.source.where(int(self.places[index]))

    def subset(self, n: int, seed: int = 0) -> EncodedSet:
        """Return n images, chosen as `ImageSet.subset` chooses them.

        Raises:
            UserError: n is below 1 or above the number of images.
        """
        return self._at(class_by_class(self.labels, n, seed))

    def without(self, n: int, seed: int = 0) -> EncodedSet:
        """Return the images that ``subset(n, seed)`` leaves, if it leaves any.

        Raises:
            UserError: n is below 1, or not below the number of images.
        """
        check_share(n, len(self))
        return self._at(class_by_class(self.labels, len(self), seed)[n:])

    def _at(self, chosen: Tensor) -> EncodedSet:
        return EncodedSet(self.source, self.labels[chosen], self.places[chosen])

    def decoded(self, shape: Shape | None, broken: BrokenImages) -> ImageSet:
        """Return all images in memory.

        Args:
            shape: (H, W, C) of every image; None: that of the first.
            broken: what becomes of images that cannot be read.

        Raises:
            UserError: an image has another shape, or `broken` does not let it pass; the message
                names the image. Or none can be read.
        """
        images = np.empty((0,), dtype=np.uint8)
        kept: list[int] = []
        for index in range(len(self)):
            try:
                pixels = decode(self.read(index), shape)
            except BrokenImageError as error:
                broken.add(self.where(index), str(error))
                continue
            except UserError as error:
                raise UserError(f"{self.where(index)}: {error}") from error
            if not kept:
                height, width, channels = shape = pixels.shape
                images = np.empty((len(self), height, width, channels), dtype=np.uint8)
            images[len(kept)] = pixels
            kept.append(index)
        if not kept:
            raise UserError(
                f"{self.where(0)}: not one of the {len(self)} images of its split can be read"
            )
        pixels_first = torch.from_numpy(images[: len(kept)]).permute(0, 3, 1, 2).contiguous()
        return ImageSet(pixels_first, self.labels[kept])
