"""Maps: channels on a grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hpff.features.base import Facts, FeatureKind, Shape, Sides, is_grid


@dataclass(frozen=True)
class Maps(FeatureKind):
    """Maps (B, C, H, W), or (B, H, W, C) as in Swin.

    Args:
        channels_last: whether they are (B, H, W, C).
    """

    kind: ClassVar[str] = "map"

    channels_last: bool = False

    def features_shape(self, shape: Shape, sides: Sides | None) -> Shape:
        return (shape[2], *shape[:2]) if self.channels_last else shape

    def features(
        self, output: Tensor, pieces: int, sides: Sides | None, mask: Tensor | None
    ) -> Tensor:
        return output.permute(0, 3, 1, 2) if self.channels_last else output

    def __str__(self) -> str:
        return "map, channels last" if self.channels_last else "map"


def recognize(shape: Shape, facts: Facts) -> Maps | None:
    """Every output of three dimensions."""
    if len(shape) != 3:
        return None
    reading = channels_are_last(shape, facts)
    return Maps(facts.channels_last if reading is None else reading)


def channels_are_last(shape: Shape, facts: Facts) -> bool | None:
    """Whether three dimensions are (H, W, C) and not (C, H, W); None where that is open.

    The two sides are those that the images' aspect fits; if that leaves it open, the channels are
    the first or the last axis, whichever has the size of a bias or a normalization of the model.

    Args:
        shape: three dimensions, the batch left out.
        facts: of the model.
    """
    a, b, c = shape
    first, last = is_grid(b, c, facts.sides), is_grid(a, b, facts.sides)
    if first == last:
        first, last = a in facts.widths, c in facts.widths
    return None if first == last else last
