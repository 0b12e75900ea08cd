"""Pooling whose gradient is cheap and keeps to the layout of its input."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def average_blocks(maps: Tensor, block: tuple[int, int]) -> Tensor:
    """Maps (B, C, H, W) averaged over blocks of (h, w) pixels: (B, C, H/h, W/w).

    The same bits as ``avg_pool2d``, whose gradient takes several times longer than the copy that it
    is where the device is a GPU.
    """
    height, width = maps.shape[-2:]
    if not maps.is_cuda or height % block[0] or width % block[1]:
        return F.avg_pool2d(maps, block)
    pooled: Tensor = AverageBlocks.apply(maps, block)  # type: ignore[no-untyped-call]
    return pooled


class AverageBlocks(torch.autograd.Function):
    """``avg_pool2d`` over blocks that divide the maps, with a gradient that is one copy."""

    generate_vmap_rule = True

    @staticmethod
    def forward(maps: Tensor, block: tuple[int, int]) -> Tensor:
        return F.avg_pool2d(maps, block)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        maps, ctx.block = inputs
        ctx.channels_last = maps.is_contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> Any:
        height, width = ctx.block
        samples, channels, rows, columns = incoming.shape
        shares = incoming / (height * width)
        if not ctx.channels_last:
            blocks = shares[:, :, :, None, :, None].expand(-1, -1, -1, height, -1, width)
            return blocks.reshape(samples, channels, rows * height, columns * width), None
        blocks = shares.permute(0, 2, 3, 1)[:, :, None, :, None]
        blocks = blocks.expand(-1, -1, height, -1, width, -1)
        spread = blocks.reshape(samples, rows * height, columns * width, channels)
        return spread.permute(0, 3, 1, 2), None


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
