"""Vectors: no positions at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hpff.features.base import Facts, FeatureKind, Shape, Sides


@dataclass(frozen=True)
class Vectors(FeatureKind):
    """Vectors (B, D)."""

    kind: ClassVar[str] = "vector"

    def features_shape(self, shape: Shape, sides: Sides | None) -> Shape:
        return shape

    def features(
        self, output: Tensor, pieces: int, sides: Sides | None, mask: Tensor | None
    ) -> Tensor:
        return output

    def __str__(self) -> str:
        return "vector"


def recognize(shape: Shape, facts: Facts) -> Vectors | None:
    """Every output of one dimension."""
    return Vectors() if len(shape) == 1 else None
