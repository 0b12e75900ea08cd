"""How many multiplications and additions an operation does."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

_aten = torch.ops.aten


def arithmetic_of(function: Any, args: Any, kwargs: Any, output: Any) -> int:
    """Of a convolution, matrix product or attention; 0 of every other operation.

    PyTorch's own formulas, but for two: it counts a grouped convolution's weight gradient as if it
    had no groups, and attention on a CPU not at all (seen in 2.11 and 2.13).
    """
    packet = function.overloadpacket
    if packet is _aten.convolution_backward:
        return _convolution_backward(*args)
    if packet is _aten._scaled_dot_product_flash_attention_for_cpu:
        return int(sdpa_flop_count(*(each.shape for each in args[:3])))
    if packet is _aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return int(sdpa_backward_flop_count(*(each.shape for each in args[:4])))
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=output))
    return 0


def _convolution_backward(
    gradient: Tensor,
    given: Tensor,
    weight: Tensor,
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    mask: tuple[bool, bool, bool],
) -> int:
    """The gradients of input and weight each take what the forward took."""
    positions = prod((given if transposed else gradient).shape[2:])
    forward = 2 * len(given) * positions * weight.numel()
    return forward * (mask[0] + mask[1])
