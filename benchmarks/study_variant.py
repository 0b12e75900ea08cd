"""A method with parts changed that no setting changes, for benchmarks/study.py."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from torch import Tensor, nn

from hpff import methods
from hpff.auxiliary import cut
from hpff.methods import AuxiliaryContext, Method, register


class EachPatch(nn.Module):
    """A network's outputs for n×n patches of maps: (B, n², ...), or while evaluated their mean."""

    def __init__(self, network: nn.Module, patches: int) -> None:
        super().__init__()
        self.network = network
        self.patches = patches

    def forward(self, maps: Tensor) -> Tensor:
        outputs: Tensor = self.network(cut(maps, self.patches).flatten(0, 1))
        of_patches = outputs.unflatten(0, (len(maps), self.patches**2))
        return of_patches if self.training else of_patches.mean(1)


@register("variant")
class Variant(Method):
    """Another method, with patches of its own (``patches=1`` in the settings) and weighted losses.

    Args:
        base: the other method's name.
        depth: its setting, if it has one.
        patches: n, which must divide the sides of maps also as the other method reads them.
        first, last: the modules at which there are patches.
        fuse: "losses": each patch has a loss, and their mean counts; "outputs": the loss of the
            mean output, which is PFF with ``patch_norm="together"``.
        slope: losses at module j weigh 1 + slope · (2 (j - 1) / (K - 1) - 1).
    """

    def __init__(
        self,
        base: str,
        depth: int | None = None,
        patches: int = 1,
        first: int = 1,
        last: int = 1000,
        fuse: Literal["losses", "outputs"] = "losses",
        slope: float = 0.0,
    ) -> None:
        self.base = methods.create(base, **({} if depth is None else {"depth": depth}))
        self.patches = patches
        self.cut_modules = range(first, last + 1)
        self.fuse = fuse
        self.slope = slope

    def read(self, features: Tensor, patches: int) -> Tensor:
        return self.base.read(features, self.patches)

    def auxiliary(self, context: AuxiliaryContext) -> nn.Module:
        if self.patches == 1 or context.module not in self.cut_modules:
            return self.base.auxiliary(context)
        channels, *sides = context.features
        part = (channels, *(side // self.patches for side in sides))
        network = self.base.auxiliary(dataclasses.replace(context, features=part))
        return EachPatch(network, self.patches)

    def loss(self, outputs: Any, targets: Tensor, context: AuxiliaryContext) -> Tensor:
        weight = 1 + self.slope * (2 * (context.module - 1) / (context.modules - 1) - 1)
        if outputs.ndim == 3 and self.fuse == "outputs":
            outputs = outputs.mean(1)
        elif outputs.ndim == 3:
            targets = targets.repeat_interleave(outputs.shape[1])
            outputs = outputs.flatten(0, 1)
        return weight * self.base.loss(outputs, targets, context)
