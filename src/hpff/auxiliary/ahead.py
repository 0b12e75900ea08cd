"""An auxiliary network that looks ahead: copies of the model's next blocks before another one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from hpff.auxiliary.patches import PatchNetwork, cut, joined


class Blocks(nn.Module):
    """Copies of blocks of a model, one after another, for features as auxiliary networks see them.

    Args:
        blocks: of the model, which stay its own.
        as_tokens: whether they take tokens (B, h·w, D) where features are maps (B, D, h, w).
    """

    def __init__(self, blocks: Sequence[nn.Module], *, as_tokens: bool) -> None:
        super().__init__()
        self.copies = nn.ModuleList(_copied(block) for block in blocks)
        self.as_tokens = as_tokens

    def forward(self, features: Tensor) -> Any:
        x = features.flatten(2).transpose(1, 2) if self.as_tokens else features
        for block in self.copies:
            x = block(x)
        return x.transpose(1, 2).unflatten(2, features.shape[2:]) if self.as_tokens else x


class FollowedBlocks(Blocks):
    """Copies that are not trained, but move towards the blocks they were copied from.

    Their weights are buffers.
    """

    def __init__(self, blocks: Sequence[nn.Module], *, as_tokens: bool) -> None:
        super().__init__(blocks, as_tokens=as_tokens)
        for module in self.copies.modules():
            for name, parameter in list(module._parameters.items()):
                del module._parameters[name]
                module.register_buffer(name, None if parameter is None else parameter.detach())

    def move(self, blocks: Sequence[nn.Module], momentum: float) -> None:
        """Every parameter: w ← μ·w + (1 - μ)·w_block."""
        average = get_ema_multi_avg_fn(momentum)
        for own, block in zip(self.copies, blocks, strict=False):
            weights = dict(own.named_buffers())
            targets = dict(block.named_parameters())
            moved = [weights[name] for name in targets]
            towards = [t.to(w) for w, t in zip(moved, targets.values(), strict=True)]
            average(moved, towards, 1)


class FreshBlocks(Blocks):
    """Copies with weights of their own, drawn anew wherever a layer can."""

    def __init__(self, blocks: Sequence[nn.Module], *, as_tokens: bool) -> None:
        super().__init__(blocks, as_tokens=as_tokens)
        for module in self.copies.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()


class AheadNetwork(nn.Module):
    """Features through copies of the next blocks, then another auxiliary network.

    Args:
        followed: copies that move towards the blocks; None where no block comes.
        twin: trained copies, whose output is added; or None: each channel of the output has a
            learned scale and bias.
        channels: C, of the blocks' output.
        read: what of maps, in n×n patches, the network behind sees.
        behind: the network that comes then.
    """

    def __init__(
        self,
        followed: FollowedBlocks | None,
        twin: FreshBlocks | None,
        channels: int,
        read: Callable[[Tensor, int], Tensor],
        behind: nn.Module,
    ) -> None:
        super().__init__()
        self.followed = followed
        self.twin = twin
        is_scaled = followed is not None and twin is None
        self.scale = nn.Parameter(torch.ones(channels)) if is_scaled else None
        self.bias = nn.Parameter(torch.zeros(channels)) if is_scaled else None
        self.read = read
        self.behind = behind

    def forward(self, features: Tensor, *images: Tensor) -> Any:
        """What the network behind gives."""
        return self.behind(self._read(self.ahead(features), 1), *images)

    def ahead(self, features: Tensor) -> Tensor:
        """What is seen of the next blocks' output: maps (B, C, h, w), or (B, C)."""
        if self.followed is None:
            return features
        output: Tensor = self.followed(features)
        if self.scale is None or self.bias is None:
            added: Tensor = output if self.twin is None else output + self.twin(features)
            return added
        shape = (-1, *(1 for _ in output.shape[2:]))
        return output * self.scale.view(shape) + self.bias.view(shape)

    def _read(self, features: Tensor, patches: int) -> Tensor:
        return self.read(features, patches) if features.ndim == 4 else features


class AheadOfPatches(AheadNetwork, PatchNetwork):
    """The same before a network that fuses patches itself."""

    def over_patches(self, maps: Tensor, patches: int) -> Tensor:
        assert isinstance(self.behind, PatchNetwork)
        if self.followed is not None:
            side_by_side = cut(maps, patches).transpose(0, 1).flatten(0, 1)
            maps = joined(self.ahead(side_by_side).unflatten(0, (patches**2, -1)), patches)
        return self.behind.over_patches(self._read(maps, patches), patches)


def _copied(block: nn.Module) -> nn.Module:
    """A copy without gradients, of which every parameter is trained."""
    instead: dict[int, Any] = {id(b): b.detach().clone() for b in block.buffers()}
    for parameter in block.parameters():  # fake ones, which plan memory, cannot be deep-copied
        trained = parameter.is_floating_point()
        instead[id(parameter)] = nn.Parameter(parameter.detach().clone(), requires_grad=trained)
    return copy.deepcopy(block, instead)
