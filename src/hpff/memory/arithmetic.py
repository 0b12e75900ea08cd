"""Count a step's arithmetic: that of convolutions, matrix products and attention."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)
from typing_extensions import Self

_aten = torch.ops.aten


class ArithmeticCounter(TorchDispatchMode):
    """Adds up the multiplications and additions of what runs while it is active.

    PyTorch's own formulas, but for two: it counts a grouped convolution's weight gradient as if it
    had no groups, and attention on a CPU not at all (seen in 2.11 and 2.13).

    Attributes:
        total: so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total: int = 0

    def __enter__(self) -> Self:
        _running.append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        _running.remove(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        packet = func.overloadpacket
        if packet is _aten.convolution_backward:
            self.total += _convolution_backward(*args)
        elif packet is _aten._scaled_dot_product_flash_attention_for_cpu:
            self.total += sdpa_flop_count(*(each.shape for each in args[:3]))
        elif packet is _aten._scaled_dot_product_flash_attention_for_cpu_backward:
            self.total += sdpa_backward_flop_count(*(each.shape for each in args[:4]))
        elif packet in flop_registry:
            self.total += flop_registry[packet](*args, **kwargs, out_val=output)
        return output


_running: list[ArithmeticCounter] = []


def count_again(arithmetic: int) -> None:
    """What was counted before happens again, though nothing runs: every counter adds it."""
    for counter in _running:
        counter.total += arithmetic


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
