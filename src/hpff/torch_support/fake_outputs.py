"""What operations on fake tensors give, remembered by what they are given.

Torch takes long over an operation on fake tensors, as it has symbolic sizes, constants and other
devices to think of. A network asks the same over and over: an operation on tensors of some shapes.
Torch's answer is taken once, and made again from what could be seen of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

_NAMED = (str, torch.dtype, torch.device, torch.layout, torch.memory_format, type(None))
_NUMBERS = (bool, int, float)
_UNREMEMBERED = {
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.inplace_view,
}


_Maker = Callable[[Sequence[Any], FakeTensorMode], Any]


class UnforeseenError(Exception):
    """What an operation gives does not follow from shapes, or cannot be made again."""


class Call:
    """An operation, and what it is given.

    Attributes:
        key: what all calls have in common that give alike.
        tensors: in this call, in order.

    Raises:
        UnforeseenError: something in it has no key.
    """

    __slots__ = ("key", "tensors")

    def __init__(self, function: Any, arguments: Sequence[Any], keywords: dict[str, Any]) -> None:
        self.tensors: list[Any] = []
        parts = [function, torch.get_default_dtype(), torch.is_grad_enabled()]
        self._describe(arguments, parts)
        if keywords:
            parts += keywords
            self._describe(tuple(keywords.values()), parts)
        self.key = tuple(parts)

    def _describe(self, values: Sequence[Any], parts: list[Any]) -> None:
        parts.append(len(values))
        for value in values:
            kind = type(value)
            if kind is FakeTensor:
                parts += _looks(value)
                self.tensors.append(value)
            elif kind in _NUMBERS:
                parts += (kind, value)  # 1, 1.0 and True are equal, and do not give alike
            elif kind is list or kind is tuple:
                self._describe(value, parts)
            elif isinstance(value, _NAMED):
                parts.append(value)
            else:
                raise UnforeseenError


def _looks(tensor: Any) -> tuple[Any, ...]:
    dtype = tensor.dtype
    if (
        tensor.constant is not None
        or dtype.is_complex
        or tensor.is_neg()
        or tensor.layout is not torch.strided
    ):
        raise UnforeseenError
    return (
        dtype,
        tensor.shape,
        tensor.stride(),
        tensor.storage_offset(),
        tensor.requires_grad,
        tensor.fake_device,
    )


class Outputs:
    """What a call gave, to be made again for another with the same key.

    Raises:
        UnforeseenError: it cannot be.
    """

    __slots__ = ("_kind", "_makers")

    def __init__(self, call: Call, given: Any) -> None:
        if not _follows_from_looks(call.key[0]) or torch.is_inference_mode_enabled():
            raise UnforeseenError
        self._kind = type(given)
        several = given if self._kind in (tuple, list) else (given,)
        self._makers = [_maker(call, output) for output in several]
        own = [
            _storage(output)
            for output, make in zip(several, self._makers, strict=True)
            if isinstance(make, _Fake) and make.of is None
        ]
        if len(set(own)) < len(own):
            raise UnforeseenError

    def again(self, tensors: Sequence[Any], mode: FakeTensorMode) -> Any:
        """What the call with these tensors gives in a mode."""
        if self._kind is tuple or self._kind is list:
            return self._kind([make(tensors, mode) for make in self._makers])
        return self._makers[0](tensors, mode)


def _follows_from_looks(function: Any) -> bool:
    return (
        isinstance(function, torch._ops.OpOverload)
        and function.namespace == "aten"
        and _UNREMEMBERED.isdisjoint(function.tags)
    )


def _maker(call: Call, output: Any) -> _Maker:
    """Makes an output again, of a call's tensors."""
    if output is None or type(output) in (bool, int):
        return lambda _tensors, _mode: output
    if type(output) is not FakeTensor:
        raise UnforeseenError
    for place, tensor in enumerate(call.tensors):
        if tensor is output:
            return lambda tensors, _: tensors[place]
    fake = _Fake.of_output(call.tensors, output)
    again = fake(call.tensors, output.fake_mode)
    alike = (
        _looks(again) == _looks(output)
        and torch._C._dispatch_key_set(again) == torch._C._dispatch_key_set(output)
        and again.untyped_storage().nbytes() == output.untyped_storage().nbytes()
    )
    if not alike:
        raise UnforeseenError
    return fake


@dataclass(frozen=True)
class _Fake:
    """Makes a fake tensor, in a storage of its own or in that of a tensor that was given."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    device: torch.device
    attributes: dict[str, Any]
    of: int | None

    @classmethod
    def of_output(cls, tensors: Sequence[Any], output: Any) -> _Fake:
        """Makes what this output is."""
        storages = [_storage(tensor) for tensor in tensors]
        storage = _storage(output)
        return cls(
            output.dtype,
            tuple(output.shape),
            output.stride(),
            output.storage_offset(),
            output.fake_device,
            {name: value for name, value in vars(output).items() if name != "fake_mode"},
            storages.index(storage) if storage in storages else None,
        )

    def __call__(self, tensors: Sequence[Any], mode: FakeTensorMode) -> Any:
        """As ``FakeTensor`` makes it."""
        meta = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")
        if self.of is not None:
            meta.set_(tensors[self.of].untyped_storage(), self.offset, self.shape, self.stride)
        fake = Tensor._make_subclass(
            FakeTensor, meta, dispatch_device=True, device_for_backend_keys=self.device
        )
        torch._C._set_throw_on_mutable_data_ptr(fake)
        vars(fake).update(self.attributes)
        fake.fake_mode = mode
        return fake


def _storage(tensor: Any) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address
