"""Auxiliary networks that map features to class scores."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hpff.auxiliary.norm import BatchStatisticsNorm


class ConvMLP(nn.Module):
    """DGL's "MLP-SR" (Belilovsky et al., ICML 2020), for maps that are already pooled.

    Three 1×1 convolutions, pooling to 2×2, and an MLP of width 4C; a BatchNorm and a ReLU after
    each but the last layer.

    Args:
        channels: C.
        num_classes: size of the output.
        hidden_layers: of the MLP. AugLocal's DGL baseline for CIFAR ResNets has 2, DGL's code 3.
        hidden_bias: whether these have a bias, as in DGL's code.

    Takes (B, C, h, w), gives (B, num_classes).
    """

    def __init__(
        self, channels: int, num_classes: int, *, hidden_layers: int = 2, hidden_bias: bool = False
    ) -> None:
        super().__init__()
        convolutions: list[nn.Module] = []
        for _ in range(3):
            convolutions += [
                nn.Conv2d(channels, channels, 1, bias=False),
                BatchStatisticsNorm(channels),
                nn.ReLU(inplace=True),
            ]
        self.convolutions = nn.Sequential(*convolutions)
        self.mlp = VectorMLP(
            4 * channels, num_classes, hidden_layers=hidden_layers, hidden_bias=hidden_bias
        )

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.convolutions(maps)
        return self.mlp(F.adaptive_avg_pool2d(maps, 2).flatten(1))


class VectorMLP(nn.Sequential):
    """An MLP of constant width for vectors (B, D), giving (B, num_classes)."""

    def __init__(
        self, width: int, num_classes: int, *, hidden_layers: int = 2, hidden_bias: bool = False
    ) -> None:
        layers: list[nn.Module] = []
        for _ in range(hidden_layers):
            layers += [
                nn.Linear(width, width, bias=hidden_bias),
                BatchStatisticsNorm(width),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers, nn.Linear(width, num_classes))
