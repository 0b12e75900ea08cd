"""A small dilated ResNet for semantic segmentation, that trains on a CPU.

Its stages are those of the CIFAR ResNets; the last keeps its resolution and is dilated by 2, 4 and
8 in turns, as the multi-grid of DeepLabV3 has it (Chen et al., "Rethinking Atrous Convolution for
Semantic Image Segmentation", 2017, https://arxiv.org/abs/1706.05587). Ours: no paper has it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hpff.models.cifar_resnet import BasicBlock, check_sizes, convolution, stage

_MULTI_GRID = (2, 4, 8)


class DenseResNet(nn.Module):
    """A stem of stride 2, three stages of (depth - 2) / 6 basic blocks, a convolutional head.

    Maps of the first stage have a quarter of the images' sides, those of the others an eighth.

    Args:
        depth: number of weight layers but those of the head, 6n + 2, counted as in a CIFAR ResNet.
        num_classes: of the pixels.
        in_channels: of the images.
        width: channels of the first stage; the next two have twice and four times as many.

    Raises:
        UserError: a size is not a whole number of at least 1.
    """

    def __init__(
        self, depth: int, num_classes: int, *, in_channels: int = 3, width: int = 16
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, in_channels=in_channels, width=width)
        blocks = (depth - 2) // 6
        self.conv1 = convolution(in_channels, width, 3, stride=2)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = stage(width, width, blocks, stride=2)
        self.layer2 = stage(width, 2 * width, blocks, stride=2)
        self.layer3 = nn.Sequential(
            *(
                BasicBlock(
                    4 * width if position else 2 * width,
                    4 * width,
                    stride=1,
                    dilation=_MULTI_GRID[position % len(_MULTI_GRID)],
                )
                for position in range(blocks)
            )
        )
        self.head = nn.Sequential(
            convolution(4 * width, 2 * width, 3),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(inplace=True),
            nn.Conv2d(2 * width, num_classes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, num_classes, H, W) of float images (B, in_channels, H, W)."""
        maps = self.relu(self.bn1(self.conv1(x)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        return F.interpolate(
            self.head(maps), size=x.shape[2:], mode="bilinear", align_corners=False
        )
