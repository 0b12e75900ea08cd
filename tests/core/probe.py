"""A method that judges features of any shape: their mean over positions, and one matrix."""

from __future__ import annotations

from torch import Tensor, nn

from hpff.methods import Method, Place


class MeanProbe(Method):
    def auxiliary(self, place: Place) -> nn.Module:
        return _Mean(place.features, place.num_classes)


class _Mean(nn.Module):
    def __init__(self, features: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.channels = 1 if len(features) == 3 else -1  # of (B, C, H, W), or the last
        self.linear = nn.Linear(features[self.channels - (self.channels > 0)], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(self.channels, -1)
        return self.linear(x.flatten(1, -2).mean(1) if x.ndim > 2 else x)
