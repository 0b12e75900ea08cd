"""InfoPro's decoders: from features back to the image.

Wang et al., "Revisiting Locally Supervised Learning: an Alternative to End-to-end Training",
ICLR 2021, https://arxiv.org/abs/2101.10832; widths as in its code.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hpff.auxiliary.upsampling import UpsampledConv2d


class Decoder(nn.Module):
    """That of small images: two 3×3 convolutions at the image's size.

    Args:
        channels: C, of the features.
        image_channels: of the image.
        widen: factor of the hidden width, which is 12.
    """

    def __init__(self, channels: int, image_channels: int, widen: float = 1.0) -> None:
        super().__init__()
        width = max(1, int(12 * widen))
        self.enlarge = UpsampledConv2d(channels, width)
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.Conv2d(width, image_channels, 3, padding=1)

    def forward(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits (B, image_channels, H, W) from maps (B, C, h, w) and the image's (H, W)."""
        logits: Tensor = self.last(F.relu(self.norm(self.enlarge(maps, size)), inplace=True))
        return logits


class DeepDecoder(nn.Module):
    """That of ImageNet: a 1×1 convolution, then 3×3 ones at a quarter, half and the full size.

    Args:
        channels: C, of the features.
        image_channels: of the image.
        widen: factor of the hidden widths, which are 128, 32 and 12.
        most: what these are at most; None: any.
    """

    def __init__(
        self, channels: int, image_channels: int, widen: float = 1.0, most: int | None = None
    ) -> None:
        super().__init__()
        widths = [max(1, int(width * widen)) for width in (128, 32, 12)]
        first, *others = (min(width, most or width) for width in widths)
        self.first = nn.Conv2d(channels, first, 1)
        self.enlarge = nn.ModuleList(
            UpsampledConv2d(before, after)
            for before, after in zip((first, *others), (*others, image_channels), strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in (first, *others))

    def forward(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits (B, image_channels, H, W) from maps (B, C, h, w) and the image's (H, W)."""
        maps = self.first(maps)
        for share, norm, enlarge in zip((4, 2, 1), self.norms, self.enlarge, strict=True):
            height, width = (-(-side // share) for side in size)
            maps = enlarge(F.relu(norm(maps), inplace=True), (height, width))
        return maps
