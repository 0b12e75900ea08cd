"""Patch feature fusion (PFF).

Su et al., "HPFF: Hierarchical Locally Supervised Learning with Patch Feature Fusion", ECCV 2024,
https://arxiv.org/abs/2407.05638.

The auxiliary network's input is cut into n×n patches, the one auxiliary network is applied to
each, and its outputs are averaged: ŷ = Σ g(x^(k,l)) / n². Where each place has a target of its own,
which the paper leaves open, each patch predicts its own region: outputs with places are put side by
side as the patches lie.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hpff.auxiliary.norm import use_batch_statistics
from hpff.errors import UserError

PatchNorm = Literal["apart", "together"]


def patches_in_force(wanted: int, *shapes: tuple[int, ...], smallest: int = 1) -> int:
    """The n that all maps allow: the largest up to ``wanted`` that divides all their sides.

    Args:
        wanted: the n asked for.
        shapes: of the maps that are cut alike, the batch left out. Only maps (C, H, W) can be
            cut: with any other shape n is 1.
        smallest: what the sides of a patch of any of them are at least, unless n is 1.

    Returns:
        n, 1 or more.
    """
    if any(len(shape) != 3 for shape in shapes):
        return 1
    sides = [side for shape in shapes for side in shape[1:]]

    def fits(n: int) -> bool:
        return all(side % n == 0 and (n == 1 or side // n >= smallest) for side in sides)

    return max(n for n in range(1, wanted + 1) if fits(n))


def cut(features: Tensor, n: int) -> Tensor:
    """Cut maps (B, C, n·h, n·w) into patches (B, n², C, h, w), row by row.

    In memory one patch position follows another, and each is laid out as the features are.
    """
    batch, channels, height, width = features.shape
    h, w = height // n, width // n
    if features.is_contiguous(memory_format=torch.channels_last):
        grid = features.permute(0, 2, 3, 1).reshape(batch, n, h, n, w, channels)
        patches = grid.permute(1, 3, 0, 2, 4, 5).reshape(n * n, batch, h, w, channels)
        return patches.permute(1, 0, 4, 2, 3)
    grid = features.reshape(batch, channels, n, h, n, w)
    patches = grid.permute(2, 4, 0, 1, 3, 5).reshape(n * n, batch, channels, h, w)
    return patches.transpose(0, 1)


def joined(patches: Tensor, n: int) -> Tensor:
    """Put patches (n², B, C, h, w), row by row, together as maps (B, C, n·h, n·w)."""
    _, batch, channels, h, w = patches.shape
    grid = patches.view(n, n, batch, channels, h, w)
    return grid.permute(2, 3, 0, 4, 1, 5).reshape(batch, channels, n * h, n * w)


class PatchNetwork(nn.Module, ABC):
    """An auxiliary network that fuses patches itself, faster than by cutting them out."""

    @abstractmethod
    def over_patches(self, maps: Tensor, patches: int) -> Tensor:
        """The mean of its outputs over the n×n patches of maps.

        Args:
            maps: (B, C, H, W).
            patches: n, which divides H and W.

        Returns:
            What the network gives for one patch, (B, ...).
        """


class PatchFusion(nn.Module):
    """An auxiliary network under PFF: the mean of its outputs over n×n patches.

    Both modes are exact and give the same values. ``together=True`` runs all patches as one
    batch. ``together=False`` runs one after another and holds the graph of one patch only: each
    is recomputed when its gradient is due.

    Args:
        network: takes features (B, C, h, w), perhaps images too, and returns a tensor, or a tuple
            or dict of tensors, whose first dimension is the batch. Its BatchNorms are replaced by
            :class:`~hpff.auxiliary.BatchStatisticsNorm`, with the same parameters.
        patches: n.
        together: the mode.
        pieces: whether features come in n pieces (B, n, D) and not as maps to be cut.
        overwrites: whether the network modifies its inputs in place: it is given copies then.
        dense: whether each place has a target of its own: outputs that are maps (B, C, h, w) are
            then put side by side, and only the others are averaged.
        norm: BatchNorms take the statistics of each patch position "apart", or of all "together".

    Raises:
        UserError: statistics are of all patches, and these run one by one.
    """

    def __init__(
        self,
        network: nn.Module,
        patches: int,
        *,
        together: bool = True,
        pieces: bool = False,
        overwrites: bool = False,
        dense: bool = False,
        norm: PatchNorm = "apart",
    ) -> None:
        super().__init__()
        if norm == "together" and not together:
            raise UserError("statistics of all patches together need all patches in one batch")
        self.patches = 1
        self.dense = dense
        self.together = together
        self.pieces = pieces
        self.overwrites = overwrites
        self.norm = norm
        self.network = network
        self.refit(patches)

    def refit(self, patches: int) -> None:
        """Use n×n patches from now on."""
        self.patches = patches
        apart = self.together and self.norm == "apart"
        self.network = use_batch_statistics(self.network, self._count if apart else 1)

    @property
    def _count(self) -> int:
        return self.patches if self.pieces else self.patches**2

    def forward(self, *inputs: Tensor) -> Any:
        """The outputs of all patches as one; every input is a map, and is cut alike."""
        if self.patches == 1:
            return self._apply_network(*inputs)
        if self.together and isinstance(self.network, PatchNetwork) and not self.pieces:
            maps = inputs[0].clone() if self.overwrites else inputs[0]
            return self.network.over_patches(maps, self.patches)
        if self.together:
            return _each(self._fused, self.of_patches(*inputs))
        each_patch = zip(*(patches.unbind(1) for patches in self._cuts(inputs)), strict=True)
        one_by_one = (checkpoint(self._apply_network, *p, use_reentrant=False) for p in each_patch)
        if self.dense:
            return _each(lambda *outs: self._fused(torch.stack(outs)), *one_by_one)
        total = next(one_by_one)
        for output in one_by_one:
            total = _each(torch.add, total, output)
        return _each(lambda out: out / self._count, total)

    def of_patches(self, *inputs: Tensor) -> Any:
        """The outputs for each patch by itself, (n², B, ...), or for each of n pieces."""
        cuts = self._cuts(inputs)
        fuses_itself = isinstance(self.network, PatchNetwork) and not self.pieces
        if not self.together or (fuses_itself and self.norm == "apart"):
            parts = zip(*(patches.unbind(1) for patches in cuts), strict=True)
            each = [self._apply_network(*part) for part in parts]
            return _each(lambda *outs: torch.stack(outs), *each)
        side_by_side = [patches.transpose(0, 1).flatten(0, 1) for patches in cuts]
        outputs = self._apply_network(*side_by_side)
        return _each(lambda out: out.unflatten(0, (self._count, -1)), outputs)

    def _cuts(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        return list(inputs) if self.pieces else [cut(maps, self.patches) for maps in inputs]

    def _fused(self, outputs: Tensor) -> Tensor:
        """What all patches' outputs (n², B, ...) are together."""
        has_places = self.dense and outputs.ndim == 5
        return joined(outputs, self.patches) if has_places else outputs.mean(0)

    def bytes_at_once(self, *inputs: Tensor) -> int:
        """Bytes that its graph holds at a time: that of one patch, where they run one by one."""
        if self.together or self.patches == 1:
            return graph_bytes(self, *inputs)
        cuts = inputs if self.pieces else [cut(maps, self.patches) for maps in inputs]
        return graph_bytes(self.network, *(patches[:, 0].clone() for patches in cuts))

    def _apply_network(self, *inputs: Tensor) -> Any:
        return self.network(*(x.clone() for x in inputs) if self.overwrites else inputs)

    def extra_repr(self) -> str:
        return f"patches={self.patches}, together={self.together}, norm={self.norm}"


def _each(function: Callable[..., Tensor], *outputs: Any) -> Any:
    """A function of the tensors in a network's outputs; ``tree_map`` would leave a cycle a call."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return function(*outputs)
    if isinstance(first, Mapping):
        return {key: _each(function, *(output[key] for output in outputs)) for key in first}
    return tuple(_each(function, *each) for each in zip(*outputs, strict=True))


def overwrites_inputs(network: nn.Module, *inputs: Tensor) -> bool:
    """Whether ``network(*inputs)`` modifies one of its inputs in place; it is run to see."""
    copies = [x.clone() for x in inputs]
    versions = [x._version for x in copies]
    with torch.no_grad():
        network(*copies)
    return [x._version for x in copies] != versions


def graph_bytes(network: nn.Module, features: Tensor, *others: Tensor) -> int:
    """Bytes that the graph of ``network(features, ...)`` saves for its backward."""
    saved: dict[int, int] = {}  # bytes of each storage

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = int(storage.nbytes())
        return tensor.detach()  # the tensor itself would make a cycle that is never collected

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = network(features.detach().requires_grad_(), *others)
    known = [features, *others, *network.parameters(), *network.buffers()]
    for tensor in known:
        saved.pop(tensor.untyped_storage()._cdata, None)
    del output
    return sum(saved.values())
