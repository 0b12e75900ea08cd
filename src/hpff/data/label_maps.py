"""Label maps: images whose pixel values are classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpff.data.decode import BrokenImageError, opened
from hpff.errors import UserError

_MODES = ("L", "P", "1")
_VALUES = 256


@dataclass(frozen=True)
class LabelMaps:
    """How the label maps of a data set are read.

    Attributes:
        num_classes: labels are 0 to num_classes - 1; None where any will do.
        ignore_index: the label of pixels that count for nothing.
        table: the label of each of the 256 values of a pixel; None: the value itself.
    """

    num_classes: int | None
    ignore_index: int
    table: tuple[int, ...] | None = None

    def decode(self, encoded: bytes, where: str, sides: tuple[int, int]) -> Tensor:
        """Return labels, uint8 (H, W).

        Args:
            encoded: an image file of one channel, such as PNG.
            where: its name, for messages.
            sides: height and width of the image that it belongs to.

        Raises:
            UserError: it is no such file, of another size, or a value in it is no label.
        """
        try:
            with opened(encoded) as found:
                check_form(found.mode, (found.height, found.width), where, sides)
                values = np.array(found, dtype=np.uint8)
        except BrokenImageError as error:
            raise UserError(f"{where}: {error}") from error
        labels = values if self.table is None else np.array(self.table, dtype=np.uint8)[values]
        self.check_values(np.bincount(labels.ravel(), minlength=_VALUES), where)
        return torch.from_numpy(labels)

    def check_values(self, counts: NDArray[np.int64], where: str) -> None:
        """Raise UserError where a value that occurs is neither a class nor ``ignore_index``."""
        if self.num_classes is None:
            return
        for value in np.flatnonzero(counts).tolist():
            if value >= self.num_classes and value != self.ignore_index:
                raise UserError(
                    f"{where}: a pixel's label is {value}; expected 0 to {self.num_classes - 1} "
                    f"({self.num_classes} classes), or {self.ignore_index}, which is ignored"
                )


def check_form(mode: str, found: tuple[int, int], where: str, sides: tuple[int, int]) -> None:
    """Raise UserError for labels stored as colours, and for a map of another size than its image.

    Args:
        mode: of the label map, as Pillow names it.
        found: its height and width.
        where: its name.
        sides: height and width of the image.
    """
    if mode not in _MODES:
        raise UserError(
            f"{where}: the labels are stored as colours (mode {mode}); expected an image of one "
            "channel whose values are class numbers (mode L or P): convert them first"
        )
    if found != sides:
        raise UserError(
            f"{where}: the labels are {found[0]}x{found[1]}, but their image is "
            f"{sides[0]}x{sides[1]}; expected the same size"
        )
