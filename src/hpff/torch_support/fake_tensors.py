"""Models and steps without memory for what their tensors hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hpff.errors import UserError


class FakeTensors(FakeTensorMode):
    """Within it tensors have a shape and nothing else.

    It mends where torch's errs: BatchNorm in 16 bits keeps its statistics in its weights' type.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output: Any = super().__torch_dispatch__(func, types, args, kwargs or {})
        if func is torch.ops.aten.native_batch_norm.default and args[1] is not None:
            result, *statistics = output
            return (result, *(each.to(args[1].dtype) for each in statistics))
        return output


def fake_model(build: Callable[[], nn.Module], mode: FakeTensors) -> nn.Module:
    """The model that ``build`` makes, its parameters and buffers fake tensors on the CPU."""
    try:
        with torch.device("meta"):
            model = build()
    except (RuntimeError, NotImplementedError, UserError):
        model = build()  # it computes with numbers, which the meta device has not
    fakes: dict[Tensor, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if tensor not in fakes:
            empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            parameter = isinstance(tensor, nn.Parameter)
            fakes[tensor] = nn.Parameter(empty, tensor.requires_grad) if parameter else empty
        return fakes[tensor]

    with mode:
        for module in model.modules():
            for named in (module._parameters, module._buffers):
                for name, tensor in named.items():
                    if tensor is not None:
                        named[name] = fake(tensor)  # type: ignore[assignment]
    return model
