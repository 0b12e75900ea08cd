"""Models without memory for their weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hpff.errors import UserError


def weightless(build: Callable[[], nn.Module], mode: FakeTensorMode) -> nn.Module:
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
