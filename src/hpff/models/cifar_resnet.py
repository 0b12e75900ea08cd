"""ResNets for small images, as local learning trains them.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2,
https://arxiv.org/abs/1512.03385.

As in the public codes of InfoPro, AugLocal and HPFF, a shortcut that changes shape is a 1×1
convolution with BatchNorm, and convolutions start from N(0, 2 / (k² · C_out)).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hpff.errors import UserError
from hpff.torch_support.narrow_convolution import PointwiseConv2d

DEPTHS = (20, 32, 44, 56, 110, 1202)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut. Maps (B, C_in, H, W) to (B, C, H/stride, W/stride).

    Args:
        in_channels: C_in.
        channels: C.
        stride: of the first convolution, and of the shortcut.
        dilation: of the 3×3 convolutions.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, channels, 3, stride, dilation)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = convolution(channels, channels, 3, dilation=dilation)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                convolution(in_channels, channels, 1, stride), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H/stride, W/stride) from maps (B, C_in, H, W)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        result: Tensor = self.relu(out)
        return result


class CifarResNet(nn.Module):
    """A stem, three stages of (depth - 2) / 6 basic blocks, global average pooling, a classifier.

    The weights lie in memory with the channels last, so that all features do: that is faster on
    CPUs, and on GPUs in 16 bits. ``model.to(memory_format=torch.contiguous_format)`` changes it.

    Args:
        depth: number of weight layers, 6n + 2.
        num_classes: size of the output.
        in_channels: of the images.
        width: channels of the first stage; the next two have twice and four times as many.

    Raises:
        UserError: a size is not a whole number of at least 1.
    """

    def __init__(
        self, depth: int, num_classes: int = 10, *, in_channels: int = 3, width: int = 16
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, in_channels=in_channels, width=width)
        blocks = (depth - 2) // 6
        self.conv1 = convolution(in_channels, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = stage(width, width, blocks, stride=1)
        self.layer2 = stage(width, 2 * width, blocks, stride=2)
        self.layer3 = stage(2 * width, 4 * width, blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of float images (B, in_channels, H, W)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def check_sizes(**sizes: object) -> None:
    """Raise UserError where one of them is no whole number of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise UserError(f"{name} is {size!r}; expected a whole number of at least 1")


def stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    """Basic blocks in a row, the first with the stride."""
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


def convolution(
    in_channels: int, channels: int, size: int, stride: int = 1, dilation: int = 1
) -> nn.Conv2d:
    """A convolution without bias that keeps the sides but for its stride, channels last."""
    kind = PointwiseConv2d if size == 1 else nn.Conv2d
    padding = dilation * (size // 2)
    layer = kind(in_channels, channels, size, stride, padding, dilation, bias=False)
    weight = torch.empty_like(layer.weight, memory_format=torch.channels_last)
    layer.weight = nn.Parameter(weight)
    nn.init.normal_(layer.weight, 0.0, math.sqrt(2.0 / (size * size * channels)))
    return layer
