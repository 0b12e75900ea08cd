"""Pooling that keeps to the layout of its input."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GlobalAverage(nn.Module):
    """The mean over positions: (B, C, H, W) to (B, C).

    As adaptive pooling to 1×1 and flattening, but its gradient lies in memory as the maps do: what
    comes before it runs several times faster on maps with the channels last.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Means (B, C) of maps (B, C, H, W)."""
        if maps.is_contiguous(memory_format=torch.channels_last):
            return maps.permute(0, 2, 3, 1).flatten(1, 2).mean(1)
        return maps.mean((2, 3))
