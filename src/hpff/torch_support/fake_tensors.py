"""Models and steps without memory for what their tensors hold."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hpff.errors import UserError
from hpff.torch_support.fake_outputs import Call, Outputs, UnforeseenError

_DEVICE = torch.ops.prim.device.default
_MOST_REMEMBERED = 100_000


class FakeTensors(FakeTensorMode):
    """Within it tensors have a shape and nothing else.

    It mends where torch's errs: BatchNorm in 16 bits keeps its statistics in its weights' type.

    Args:
        remembers: whether what an operation gave, here or in another such mode, is made again where
            it is sure to give the same.
    """

    _shared: ClassVar[dict[tuple[Any, ...], Outputs | None]] = {}

    def __init__(self, *, remembers: bool = True) -> None:
        super().__init__()
        self._remembers = remembers
        self._remembered = self._shared if remembers else {}
        if remembers:
            self.cache_enabled = False  # torch's own would remember the same, and take longer
        self._watching: list[Callable[[Any], None]] = []
        self._depth = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch wraps what follows, which takes longer than it does itself

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE:
            return args[0].device
        self._depth += 1  # torch may do an operation by others
        try:
            output = self._output(func, types, args, kwargs)
        finally:
            self._depth -= 1
        if not self._depth:
            for look in self._watching:
                look(output)
        return output

    def _output(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        keywords = kwargs or {}
        try:
            call = Call(func, args, keywords)
            outputs = self._remembered[call.key]
        except (UnforeseenError, TypeError):
            return self._mended(func, types, args, keywords)
        except KeyError:
            return self._seen(call, types, args, keywords)
        if outputs is None:
            return self._mended(func, types, args, keywords)
        return outputs.again(call.tensors, self)

    def _seen(self, call: Call, types: Any, arguments: Any, keywords: Any) -> Any:
        """What a call gives that was not seen before, to be remembered."""
        function = call.key[0]
        output = self._mended(function, types, arguments, keywords)
        outputs = None
        with contextlib.suppress(UnforeseenError):
            if self._remembers and Call(function, arguments, keywords).key == call.key:
                outputs = Outputs(call, output)
        if len(self._remembered) >= _MOST_REMEMBERED:
            self._remembered.clear()
        self._remembered[call.key] = outputs
        return output

    def _mended(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        output: Any = super().__torch_dispatch__(func, types, args, kwargs)
        if func is torch.ops.aten.native_batch_norm.default and args[1] is not None:
            result, *statistics = output
            return (result, *(each.to(args[1].dtype) for each in statistics))
        return output

    @classmethod
    def active(cls) -> FakeTensors | None:
        """The one within which this is called."""
        mode = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
        return mode if isinstance(mode, cls) else None

    def watch(self, look: Callable[[Any], None]) -> Callable[[], None]:
        """Call ``look`` with what each operation gives; the answer puts an end to it.

        A mode around this one would see the same, and take as long again as the operation.
        """
        self._watching.append(look)
        return lambda: self._watching.remove(look)


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
