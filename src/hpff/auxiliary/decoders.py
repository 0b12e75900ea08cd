"""InfoPro's decoders (Wang et al., ICLR 2021): from features back to the image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hpff.auxiliary.upsampling import UpsampledConv2d


class Decoder(nn.Module):
    """That of small images: two 3×3 convolutions at the image's size.

    Takes (B, C, h, w) and the image's (H, W), gives logits (B, image_channels, H, W). ``widen`` is
    a factor of the hidden width.
    """

    def __init__(self, channels: int, image_channels: int, widen: float = 1.0) -> None:
        super().__init__()
        width = max(1, int(12 * widen))
        self.enlarge = UpsampledConv2d(channels, width)
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.Conv2d(width, image_channels, 3, padding=1)

    def forward(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        logits: Tensor = self.last(F.relu(self.norm(self.enlarge(maps, size)), inplace=True))
        return logits


class DeepDecoder(nn.Module):
    """That of ImageNet: a 1×1 convolution, then 3×3 ones at a quarter, half and the full size.

    Takes and gives what :class:`Decoder` does.
    """

    def __init__(self, channels: int, image_channels: int, widen: float = 1.0) -> None:
        super().__init__()
        first, *others = (max(1, int(width * widen)) for width in (128, 32, 12))
        self.first = nn.Conv2d(channels, first, 1)
        self.enlarge = nn.ModuleList(
            UpsampledConv2d(before, after)
            for before, after in zip((first, *others), (*others, image_channels), strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in (first, *others))

    def forward(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        maps = self.first(maps)
        for share, norm, enlarge in zip((4, 2, 1), self.norms, self.enlarge, strict=True):
            height, width = (-(-side // share) for side in size)
            maps = enlarge(F.relu(norm(maps), inplace=True), (height, width))
        return maps
