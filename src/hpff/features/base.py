"""What a kind of features is, and what is known of a model before its outputs are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from torch import Tensor

Shape = tuple[int, ...]
Sides = tuple[int, int]


@dataclass(frozen=True)
class Facts:
    """What a model and its example say about outputs whose shape alone does not tell.

    Attributes:
        sides: height and width of the images; None where the model's input is none.
        length: of the sequences of token numbers; None where the input is none.
        widths: sizes of the model's biases and of its normalizations' weights: channel counts.
        prefix: how many class, distillation and register tokens the model learns.
        channels_last: whether maps that could be read either way are (H, W, C).
    """

    sides: Sides | None
    length: int | None
    widths: frozenset[int]
    prefix: int
    channels_last: bool = False


class FeatureKind(ABC):
    """How the output of one module is laid out.

    Methods see one of two forms, whatever the layout: maps (B, C, H, W), which PFF cuts into n×n
    patches, or vectors (B, D), where a sequence gives n of them, one for each piece.

    Attributes:
        kind: its name.
    """

    kind: ClassVar[str]

    @abstractmethod
    def features_shape(self, shape: Shape, sides: Sides | None) -> Shape:
        """What the methods see, uncut.

        Args:
            shape: of the output, the batch left out.
            sides: of the images; None if there are none.

        Returns:
            (C, H, W) or (D,).
        """

    @abstractmethod
    def features(
        self, output: Tensor, pieces: int, sides: Sides | None, mask: Tensor | None
    ) -> Tensor:
        """The output as methods read it.

        Args:
            output: (B, *shape).
            pieces: n; maps come uncut.
            sides: of the images; None if there are none.
            mask: (B, L), True for the tokens of a sequence that are no padding; None: all are.

        Returns:
            Maps (B, C, H, W), vectors (B, D), or pieces (B, n, D) with n > 1.
        """

    def shared(self, output: Tensor) -> Tensor | None:
        """What is added to what methods read at each position of maps.

        Args:
            output: (B, *shape).

        Returns:
            (B, C), or None for nothing.
        """
        return None

    def pieces(self, wanted: int, smallest: int, shape: Shape) -> int:
        """The n in force where methods see vectors; maps are cut by their sides.

        Args:
            wanted: the n asked for.
            smallest: how many tokens a piece has at least, unless n is 1.
            shape: of the output, the batch left out.
        """
        return 1


def is_grid(height: int, width: int, sides: Sides | None) -> bool:
    """Whether positions height×width can be those of images: the same aspect, or by one stride."""
    if sides is None:
        return True
    return height * sides[1] == width * sides[0] or (height, width) in _strided(sides)


@lru_cache(maxsize=64)
def _strided(sides: Sides) -> frozenset[Sides]:
    down = {(sides[0] // s, sides[1] // s) for s in range(1, max(sides) + 1)}
    return frozenset(down | {(-(-sides[0] // s), -(-sides[1] // s)) for s in range(1, max(sides))})
