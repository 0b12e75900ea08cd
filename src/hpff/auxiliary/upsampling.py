"""A convolution of enlarged maps that never holds them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UpsampledConv2d(nn.Conv2d):
    """A 3×3 convolution of maps that are first enlarged bilinearly, corners aligned.

    Both steps are linear, so the channels can be mixed while the maps are still small:
    y = b + Σ_dy Σ_dx U_dy (W_dy,dx · x) U_dx^T, where U_d interpolates along one axis and shifts by
    d. That is done where it takes less than two thirds of the multiplications. The enlarged maps
    are then never in memory.

    Args:
        in_channels: C.
        out_channels: of the result.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, maps: Tensor, size: tuple[int, int]) -> Tensor:  # type: ignore[override]
        """The convolved (B, out_channels, H, W), from maps (B, C, h, w) and ``size``, (H, W)."""
        height, width = maps.shape[2:]
        if size == (height, width):
            return super().forward(maps)
        if not self._pays((height, width), size):
            large = F.interpolate(maps, size=size, mode="bilinear", align_corners=True)
            return super().forward(large)
        return self._of_small(maps, *size)

    def _pays(self, small: tuple[int, int], large: tuple[int, int]) -> bool:
        """Whether mixing channels first takes clearly fewer multiplications."""
        (h, w), (height, width) = small, large
        mixed = 9 * h * w * self.in_channels
        interpolated = 9 * h * w * width + 3 * h * height * width
        plain = 9 * height * width * self.in_channels
        return 3 * (mixed + interpolated) < 2 * plain

    def _of_small(self, maps: Tensor, height: int, width: int) -> Tensor:
        h, w = maps.shape[2:]
        down, across = _interpolation(h, height, maps), _interpolation(w, width, maps)
        weights = self.weight.permute(1, 3, 2, 0)  # C, dx, dy, out
        rows = maps.permute(0, 2, 3, 1).reshape(-1, self.in_channels) @ weights.flatten(1)
        rows = across @ rows.view(-1, w * 3, 3 * self.out_channels)
        rows = rows.view(-1, h, width, 3, self.out_channels).transpose(2, 3)
        rows = down @ rows.reshape(-1, h * 3, width * self.out_channels)
        large = rows.view(-1, height, width, self.out_channels).permute(0, 3, 1, 2)
        assert self.bias is not None
        return large + self.bias.view(-1, 1, 1)


def _interpolation(side: int, wanted: int, like: Tensor) -> Tensor:
    """(wanted, side · 3): what each old position gives to each new one, shifted by -1, 0 and 1."""
    single = torch.eye(side, dtype=like.dtype, device=like.device)[None]
    enlarged = F.interpolate(single, size=wanted, mode="linear", align_corners=True)[0]
    padded = F.pad(enlarged, (1, 1))
    return torch.stack([padded[:, d : d + wanted] for d in range(3)]).permute(2, 1, 0).flatten(1)
