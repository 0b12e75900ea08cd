"""The tensors in what a model takes and in what it and its submodules return.

A submodule may return a tensor, or tensors in tuples, lists, mappings and dataclasses, nested in
any way, as the blocks of transformers do: the hidden state first, then attention weights or None.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from hpff.errors import UserError

Path = tuple[Any, ...]
"""The indices, keys and field names that lead to one tensor of an output."""


def call_model(model: Callable[..., Any], inputs: Any) -> Any:
    """The model on a tensor, a tuple of arguments or a dict of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


class Outputs(NamedTuple):
    """What losses are taken of.

    Attributes:
        logits: the model's output.
        own_head: that of an auxiliary head of the model's own, if it has one and returns it.
    """

    logits: Tensor
    own_head: Tensor | None = None


def outputs_of(output: Any) -> Outputs:
    """The tensors that losses are taken of.

    Args:
        output: of a model: a tensor, or an object or a mapping with one as ``logits`` or, as
            torchvision's segmentation models return it, as ``out``, and perhaps another as ``aux``.

    Raises:
        UserError: there is none.
    """
    logits, own_head = output, None
    if isinstance(output, Mapping):
        logits = output.get("logits", output.get("out"))
        own_head = output.get("aux")
    logits = getattr(output, "logits", logits)
    if not isinstance(logits, Tensor):
        raise UserError(
            f"the model returns {type(output).__name__}; expected a tensor of logits, "
            "or an object with a tensor in .logits"
        )
    return Outputs(logits, own_head if isinstance(own_head, Tensor) else None)


def logits_of(output: Any) -> Tensor:
    """A model's output as one tensor; see :func:`outputs_of`."""
    return outputs_of(output).logits


def tensors_in(output: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor of an output, and the way to it."""
    if isinstance(output, Tensor):
        yield path, output
        return
    for key, value in _items(output):
        yield from tensors_in(value, (*path, key))


def tensor_at(output: Any, path: Path) -> Tensor | None:
    """The tensor of an output that lies at ``path``, if there is one."""
    for key in path:
        output = dict(_items(output)).get(key)
    return output if isinstance(output, Tensor) else None


def replaced(output: Any, old: Tensor, new: Tensor) -> Any:
    """The output with one tensor exchanged, and every other tensor detached.

    Args:
        output: of a model or a submodule.
        old: the tensor that goes, found by identity.
        new: what takes its place.
    """

    def change(tensor: Tensor) -> Tensor:
        if tensor is old:
            return new
        return tensor.detach() if tensor.requires_grad else tensor

    return mapped(output, change)


def mapped(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The output with every tensor changed."""
    if isinstance(output, Tensor):
        return change(output)
    items = [(key, value, mapped(value, change)) for key, value in _items(output)]
    if all(value is changed for _, value, changed in items):
        return output
    return _rebuilt(output, {key: changed for key, _, changed in items})


def _items(output: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(output, Mapping):
        yield from output.items()
    elif isinstance(output, (tuple, list)):
        yield from enumerate(output)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            yield field.name, getattr(output, field.name, None)


def _rebuilt(output: Any, items: dict[Any, Any]) -> Any:
    if isinstance(output, tuple):
        make = getattr(type(output), "_make", type(output))  # a named tuple takes its items apart
        return make(list(items.values()))
    if isinstance(output, list):
        return type(output)(list(items.values()))
    result = copy.copy(output)
    for key, value in items.items():
        if isinstance(output, Mapping):
            result[key] = value
        else:
            object.__setattr__(result, key, value)  # a dataclass may be frozen
    return result
