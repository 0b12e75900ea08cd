"""Around a fault of PyTorch's kernels that depends on how tensors lie in memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def has_group_norm(model: nn.Module) -> bool:
    """Whether :func:`without_channels_last` has to be asked: the model has a GroupNorm."""
    return any(isinstance(module, nn.GroupNorm) for module in model.modules())


def without_channels_last(maps: Tensor) -> Tensor:
    """The same values, not channels-last where that would crash.

    On CPUs the backward of a GroupNorm whose input wants no gradient writes through a null pointer
    if that input is channels-last (torch 2.11 to 2.13). In plain training no GroupNorm stands
    there; in a local module it may be the first layer.
    """
    layout = _CHANNELS_LAST.get(maps.ndim)
    if maps.device.type != "cpu" or layout is None:
        return maps
    if not maps.is_contiguous(memory_format=layout):
        return maps
    return maps.clone(memory_format=torch.contiguous_format)
