"""Around a fault of oneDNN's kernels for strided 1×1 convolutions of few channels."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

_BLOCK = 8  # channels that oneDNN's AVX2 kernels take at a time


class PointwiseConv2d(nn.Conv2d):
    """A 1×1 convolution, perhaps with a stride, without padding.

    On CPUs that have AVX2 and no more, oneDNN writes past its workspace, and corrupts the heap,
    where a channels-last input of fewer than 8 channels is strided (torch 2.13; oneDNN issue 6035).
    There the positions are picked out first, and convolved without a stride: the same values.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Conv2d names it so
        rows, columns = cast("tuple[int, int]", self.stride)
        if (rows, columns) == (1, 1) or self.in_channels >= _BLOCK or input.device.type != "cpu":
            return super().forward(input)
        return F.conv2d(input[..., ::rows, ::columns], self.weight, self.bias)
