"""Sequences, padded or not, and whatever is no other kind."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hpff.features.base import Facts, FeatureKind, Shape, Sides


@dataclass(frozen=True)
class Sequences(FeatureKind):
    """Sequences (B, L, D), or (B, D, L) as in 1-d convolutions.

    What methods see is the mean of each of n pieces. The pieces share out a sample's own tokens,
    those that are no padding, as adaptive pooling does: of c tokens, piece p = 0..n-1 has those
    from ⌊p·c/n⌋ up to ⌈(p+1)·c/n⌉. So padding changes nothing, and no piece is empty; a sample
    without any token gives zeros. More dimensions of positions than one are taken in a row.

    Args:
        channels_first: whether they are (B, D, L).
    """

    kind: ClassVar[str] = "sequence"

    channels_first: bool = False

    def features_shape(self, shape: Shape, sides: Sides | None) -> Shape:
        return (shape[0] if self.channels_first else shape[-1],)

    def pieces(self, wanted: int, smallest: int, shape: Shape) -> int:
        length = prod(shape) // self.features_shape(shape, None)[0]
        return min(wanted, max(1, length // smallest))

    def features(
        self, output: Tensor, pieces: int, sides: Sides | None, mask: Tensor | None
    ) -> Tensor:
        rows = output.flatten(2).mT if self.channels_first else output.flatten(1, -2)
        if mask is None:
            valid = torch.ones(1, rows.shape[1], dtype=torch.bool, device=rows.device)
        else:
            valid = _of_length(mask, rows.shape[1])
        inside = membership(valid, pieces)
        means = inside.to(rows.dtype) @ rows / inside.sum(2, keepdim=True).clamp(min=1)
        return means.squeeze(1) if pieces == 1 else means

    def __str__(self) -> str:
        return "sequence, channels first" if self.channels_first else "sequence"


def membership(valid: Tensor, pieces: int) -> Tensor:
    """Which token belongs to which piece.

    Args:
        valid: (B, L), True for the tokens that are shared out.
        pieces: n.

    Returns:
        Truth values (B, n, L).
    """
    count = valid.sum(1)[:, None, None]
    rank = (valid.cumsum(1) - 1)[:, None]
    piece = torch.arange(pieces, device=valid.device)[:, None]
    begins, ends = piece * count // pieces, -(-(piece + 1) * count // pieces)
    return valid[:, None] & (rank >= begins) & (rank < ends)


def _of_length(mask: Tensor, length: int) -> Tensor:
    """The mask (B, L) of a sequence that the model has made longer or shorter.

    Tokens that it has put in front count; of merged ones, each with a valid one among them.
    """
    extra = length - mask.shape[1]
    if extra > 0:
        return F.pad(mask, (extra, 0), value=True)
    if extra < 0:
        return F.adaptive_max_pool1d(mask[:, None].float(), length)[:, 0] > 0
    return mask


def recognize(shape: Shape, facts: Facts) -> Sequences:
    """Anything; the channels are the last axis.

    They are the first where only the last has the length of the input, or else where only the
    first has the size of a bias or a normalization of the model.
    """
    first = [side == facts.length for side in (shape[-1], shape[0])]
    if first[0] == first[1]:
        first = [side in facts.widths for side in (shape[0], shape[-1])]
    return Sequences(first[0] and not first[1])
