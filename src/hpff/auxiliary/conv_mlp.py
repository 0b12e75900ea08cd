"""DGL's auxiliary network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hpff.auxiliary.norm import BatchStatisticsNorm
from hpff.auxiliary.patches import PatchNetwork


class ConvMLP(PatchNetwork):
    """DGL's "MLP-SR", for maps that are already pooled.

    Belilovsky et al., "Decoupled Greedy Learning of CNNs", ICML 2020,
    https://arxiv.org/abs/1901.08164.

    Three 1×1 convolutions, pooling to 2×2, and an MLP of width 4C; a BatchNorm and a ReLU after
    each but the last layer. The convolutions run as matrix products on the positions: on maps
    this small that takes half the time.

    Args:
        channels: C.
        num_classes: size of the output.
        hidden_layers: of the MLP. AugLocal's DGL baseline for CIFAR ResNets has 2, DGL's code 3.
        hidden_bias: whether these have a bias, as in DGL's code.
    """

    def __init__(
        self, channels: int, num_classes: int, *, hidden_layers: int = 2, hidden_bias: bool = False
    ) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(_Layer(channels, bias=False) for _ in range(3))
        self.hidden = nn.ModuleList(
            _Layer(4 * channels, bias=hidden_bias) for _ in range(hidden_layers)
        )
        self.classifier = nn.Linear(4 * channels, num_classes)

    def forward(self, maps: Tensor) -> Tensor:
        """Class scores (B, num_classes) of maps (B, C, h, w)."""
        return self.over_patches(maps, 1)

    def over_patches(self, maps: Tensor, patches: int) -> Tensor:
        samples, channels, height, width = maps.shape
        groups, height, width = patches**2, height // patches, width // patches
        # Positions by patches by channels: a BatchNorm sees each patch's channels as its own.
        grid = maps.view(samples, channels, patches, height, patches, width)
        rows = grid.permute(0, 3, 5, 2, 4, 1).reshape(-1, channels)
        for convolution in self.convolutions:
            rows = convolution(rows, groups)
        if (height, width) != (1, 1):
            rows = _pooled(rows.view(samples, height, width, groups, channels))
        for layer in self.hidden:
            rows = layer(rows, groups)
        # The last layer is linear: the mean over patches may come before it.
        fused = rows.view(samples, groups, -1).mean(1) if groups > 1 else rows
        return _linear(self.classifier, fused)


class _Layer(nn.Module):
    def __init__(self, width: int, *, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=bias)
        self.norm = BatchStatisticsNorm(width)

    def forward(self, rows: Tensor, groups: int) -> Tensor:
        """Rows (R·groups, width or a fourth of it) to rows (R·groups, width)."""
        # Not in place: of a view's backward that would make one that copies slices.
        return F.relu(self.norm.of_rows(_linear(self.linear, rows), groups))


def _linear(layer: nn.Linear, rows: Tensor) -> Tensor:
    """The layer on rows; where they hold one position of the four it knows, on its copies."""
    weight = layer.weight
    if rows.shape[1] < weight.shape[1]:
        weight = weight.view(len(weight), rows.shape[1], -1).sum(2)
    return F.linear(rows, weight, layer.bias)


def _pooled(rows: Tensor) -> Tensor:
    """(B, h, w, G, C) pooled to 2×2 positions, (B·G, C·4)."""
    samples, height, width, groups, channels = rows.shape
    maps = rows.flatten(3).permute(0, 3, 1, 2)
    if (height, width) != (2, 2):
        maps = F.adaptive_avg_pool2d(maps, 2)
    return maps.reshape(samples * groups, 4 * channels)
