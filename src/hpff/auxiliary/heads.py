"""Auxiliary networks that map features to class scores."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hpff.auxiliary.norm import BatchStatisticsNorm, PatchAware


class ConvMLP(PatchAware):
    """DGL's "MLP-SR" (Belilovsky et al., ICML 2020), for maps that are already pooled.

    Three 1×1 convolutions, pooling to 2×2, and an MLP of width 4C; a BatchNorm and a ReLU after
    each but the last layer. The convolutions run as matrix products on the positions: on maps
    this small that takes half the time.

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
        self.convolutions = nn.Sequential(
            *(layer for _ in range(3) for layer in _layer(channels, bias=False))
        )
        hidden = [_layer(4 * channels, bias=hidden_bias) for _ in range(hidden_layers)]
        self.hidden = nn.Sequential(*(layer for layers in hidden for layer in layers))
        self.classifier = nn.Linear(4 * channels, num_classes)

    def forward(self, maps: Tensor) -> Tensor:
        samples, channels, height, width = maps.shape
        # Positions by patches by channels: side by side, all patches are one normalization.
        grouped = maps.view(self.groups, -1, channels, height, width).permute(1, 3, 4, 0, 2)
        rows = self.convolutions(grouped.reshape(-1, channels))
        maps = rows.view(grouped.shape).permute(0, 3, 4, 1, 2)
        maps = maps.reshape(samples, channels, height, width)
        first, *rest = (*self.hidden, self.classifier)
        assert isinstance(first, nn.Linear)
        if (height, width) == (1, 1):
            scores = _of_repeated(first, maps.flatten(1))
        else:
            pooled = maps if (height, width) == (2, 2) else F.adaptive_avg_pool2d(maps, 2)
            scores = F.linear(pooled.flatten(1), first.weight, first.bias)
        for layer in rest:
            scores = layer(scores)
        return _by_patch(scores, self.groups)


class VectorMLP(nn.Sequential, PatchAware):
    """An MLP of constant width for vectors (B, D), giving (B, num_classes).

    Maps (B, D, h, w) are averaged over positions first.
    """

    def __init__(
        self, width: int, num_classes: int, *, hidden_layers: int = 2, hidden_bias: bool = False
    ) -> None:
        hidden = [_layer(width, bias=hidden_bias) for _ in range(hidden_layers)]
        super().__init__(
            *(layer for layers in hidden for layer in layers), nn.Linear(width, num_classes)
        )

    def forward(self, vectors: Tensor) -> Tensor:
        rows = vectors.mean((2, 3)) if vectors.ndim == 4 else vectors
        rows = rows.unflatten(0, (self.groups, -1)).transpose(0, 1).reshape(rows.shape)
        for layer in self:
            rows = layer(rows)
        return _by_patch(rows, self.groups)


def _layer(width: int, *, bias: bool) -> list[nn.Module]:
    norm = BatchStatisticsNorm(width, alternating=True)
    return [nn.Linear(width, width, bias=bias), norm, nn.ReLU(inplace=True)]


def _by_patch(rows: Tensor, groups: int) -> Tensor:
    """Rows whose patches stand side by side, sample by sample, one patch position after another."""
    return rows.view(-1, groups, rows.shape[1]).transpose(0, 1).reshape(rows.shape)


def _of_repeated(layer: nn.Linear, values: Tensor) -> Tensor:
    """What ``layer`` gives for maps of 1×1 that pooling to 2×2 would repeat four times."""
    weight = layer.weight.view(-1, values.shape[1], 4).sum(2)
    return F.linear(values, weight, layer.bias)
