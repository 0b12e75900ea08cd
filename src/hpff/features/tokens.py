"""Tokens: a grid of them in one row, perhaps with class and register tokens in front."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hpff.errors import UserError
from hpff.features.base import Facts, FeatureKind, Shape, Sides, is_grid

MOST_PREFIX = 16


@dataclass(frozen=True)
class Tokens(FeatureKind):
    """Tokens (B, prefix + h·w, D) of an image, row by row.

    The prefix (class and register tokens) belongs to no patch and stands for the whole image: its
    mean is added to what methods read at every position. So what the model's head will read is
    trained in each module.

    Args:
        prefix: how many tokens stand in front of the grid.
        grid: h and w; by default those that have the images' aspect.
    """

    kind: ClassVar[str] = "tokens"

    prefix: int = 0
    grid: Sides | None = None

    def features_shape(self, shape: Shape, sides: Sides | None) -> Shape:
        return (shape[1], *self._grid(shape[0], sides))

    def features(
        self, output: Tensor, pieces: int, sides: Sides | None, mask: Tensor | None
    ) -> Tensor:
        grid = self._grid(output.shape[1], sides)
        positions: Tensor = output[:, self.prefix :].unflatten(1, grid)
        return positions.permute(0, 3, 1, 2)

    def shared(self, output: Tensor) -> Tensor | None:
        return output[:, : self.prefix].mean(1) if self.prefix else None

    def _grid(self, count: int, sides: Sides | None) -> Sides:
        positions = count - self.prefix
        if self.grid is not None and self.grid[0] * self.grid[1] == positions:
            return self.grid
        found = grid_of(positions, sides)
        if found is None:
            raise UserError(
                f"{count} tokens with {self.prefix} in front of the grid are no grid of the "
                f"images' aspect; give features=Tokens(prefix=..., grid=(h, w)), or 'sequence'"
            )
        return found

    def __str__(self) -> str:
        return f"tokens, {self.prefix} in front" if self.prefix else "tokens"


def grid_of(positions: int, sides: Sides | None) -> Sides | None:
    """The grid that the images' aspect fits.

    Args:
        positions: h·w.
        sides: of the images; None if there are none.

    Returns:
        (h, w), or None if there is no such grid.
    """
    if sides is None:
        return None
    grids = [
        (height, positions // height)
        for height in range(1, positions + 1)
        if positions % height == 0 and is_grid(height, positions // height, sides)
    ]
    exact = [(h, w) for h, w in grids if h * sides[1] == w * sides[0]]
    return next(iter(exact or grids), None)


def recognize(shape: Shape, facts: Facts) -> Tokens | None:
    """Rows (N, D) of an image's model, if N less the prefix is a grid of the images' aspect.

    The prefix is the number of class and register tokens that the model learns; if that leaves no
    grid it is 0, and if that does neither, the smallest number that does.
    """
    if len(shape) != 2:
        return None
    for prefix in (facts.prefix, *range(MOST_PREFIX + 1)):
        if grid_of(shape[0] - prefix, facts.sides) is not None:
            return Tokens(prefix)
    return None
