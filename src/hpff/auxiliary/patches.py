"""Patch feature fusion (PFF; Su et al., ECCV 2024).

The auxiliary network's input is cut into n×n patches, the one auxiliary network is applied to
each, and its outputs are averaged: ŷ = Σ g(x^(k,l)) / n².
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from hpff.auxiliary.norm import use_batch_statistics


def patches_in_force(shape: tuple[int, ...], wanted: int) -> int:
    """The n that a feature allows: the largest up to ``wanted`` that divides both of its sides.

    Args:
        shape: of the feature, the batch left out. Only a map (C, H, W) is cut; else n is 1.
        wanted: the n asked for.
    """
    if len(shape) != 3:
        return 1
    _, height, width = shape
    return max(n for n in range(1, wanted + 1) if height % n == 0 and width % n == 0)


def cut(features: Tensor, n: int) -> Tensor:
    """Cut maps (B, C, n·h, n·w) into patches (B, n², C, h, w), row by row."""
    batch, channels, height, width = features.shape
    grid = features.view(batch, channels, n, height // n, n, width // n)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, n * n, channels, height // n, width // n)


class PatchFusion(nn.Module):
    """An auxiliary network under PFF: the mean of its outputs over n×n patches.

    Both modes are exact and give the same values. ``together=True`` runs all patches as one
    batch. ``together=False`` runs one after another and holds the graph of one patch only: each
    is recomputed when its gradient is due.

    Args:
        network: takes features (B, C, h, w) and returns a tensor, or a tuple or dict of tensors,
            whose first dimension is the batch. Its BatchNorms are replaced by
            :class:`~hpff.auxiliary.BatchStatisticsNorm`, with the same parameters.
        patches: n.
        together: the mode.
    """

    def __init__(self, network: nn.Module, patches: int, *, together: bool = True) -> None:
        super().__init__()
        self.patches = patches
        self.together = together
        self.network = use_batch_statistics(network, patches**2 if together else 1)

    def forward(self, features: Tensor) -> Any:
        if self.patches == 1:
            return self.network(features)
        patches = cut(features, self.patches)
        if self.together:
            outputs = self.network(patches.flatten(0, 1))
            return tree_map(lambda out: out.unflatten(0, patches.shape[:2]).mean(1), outputs)
        total = None
        for patch in patches.unbind(1):
            output = checkpoint(self.network, patch, use_reentrant=False)
            total = output if total is None else _add(total, output)
        return tree_map(lambda out: out / self.patches**2, total)

    def extra_repr(self) -> str:
        return f"patches={self.patches}, together={self.together}"


def _add(first: Any, second: Any) -> Any:
    if isinstance(first, Tensor):
        return first + second
    if isinstance(first, dict):
        return {key: _add(first[key], second[key]) for key in first}
    return type(first)(_add(a, b) for a, b in zip(first, second, strict=True))


def graph_bytes(network: nn.Module, features: Tensor) -> int:
    """Bytes that the graph of ``network(features)`` saves for its backward."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = network(features.detach().requires_grad_())
    known = [features, *network.parameters(), *network.buffers()]
    for tensor in known:
        saved.pop(tensor.untyped_storage()._cdata, None)
    del output
    return sum(saved.values())
