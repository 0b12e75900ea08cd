"""A narrow entrance to an auxiliary network, so that its size does not grow with its features."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from hpff.auxiliary.patches import PatchNetwork


def narrowed(network: nn.Module, channels: int, width: int) -> nn.Module:
    """A network for features of ``width`` channels as one for ``channels``.

    A learned linear map of the channels stands before it, at every position alike.
    """
    if isinstance(network, PatchNetwork):
        return _NarrowedPatches(network, channels, width)
    return _Narrowed(network, channels, width)


class _Narrowed(nn.Module):
    def __init__(self, network: nn.Module, channels: int, width: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, width, bias=False)
        self.network = network

    def forward(self, features: Tensor, *others: Tensor) -> Any:
        """What the network gives for features (B, C, h, w) or (B, C), and others as they are."""
        return self.network(self._narrow(features), *others)

    def _narrow(self, features: Tensor) -> Tensor:
        weight = self.reduce.weight
        if features.ndim == 4:
            return F.conv2d(features, weight[:, :, None, None])
        return F.linear(features, weight)


class _NarrowedPatches(_Narrowed, PatchNetwork):
    def over_patches(self, maps: Tensor, patches: int) -> Tensor:
        assert isinstance(self.network, PatchNetwork)
        return self.network.over_patches(self._narrow(maps), patches)
