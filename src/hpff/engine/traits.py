"""What an operation below autograd does, known before it is called: by its schema or its name."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hpff.cutting.operations import is_dear
from hpff.engine.leaves import tensors_in

# They move running statistics, arguments 3 and 4, though their schemas do not say so.
_MOVES_STATISTICS = {"native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"}
# It gives what its backward works on only where gradients are enabled.
_FOR_GRADIENTS = {"mkldnn_rnn_layer"}


class Traits(NamedTuple):
    """What is known of an operation before it is called.

    Attributes:
        name: with its overload's.
        only_looks: whether it gives its argument's own storage, and changes nothing.
        writes: the arguments that it changes in place, by place and name.
        draws: whether it draws random numbers.
        dear: whether it is one of those that make up a step's arithmetic.
        moves_statistics: whether it moves running statistics, which its schema does not say.
        for_gradients: whether it gives all that it gave only where gradients are enabled.
    """

    name: str
    only_looks: bool
    writes: tuple[tuple[int, str], ...]
    draws: bool
    dear: bool
    moves_statistics: bool
    for_gradients: bool

    def changed(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> list[Tensor]:
        """The tensors that a call changes in place."""
        found: list[Tensor] = []
        for place, name in self.writes:
            given = arguments[place] if place < len(arguments) else keywords.get(name)
            found += tensors_in(given)
        return found


@functools.cache
def traits_of(function: Any) -> Traits:
    """What is known of an operation."""
    schema = function._schema
    writes = (
        (place, argument.name)
        for place, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    return Traits(
        str(function),
        _only_looks(function),
        tuple(writes),
        torch.Tag.nondeterministic_seeded in function.tags,
        is_dear(function),
        function.overloadpacket.__name__ in _MOVES_STATISTICS,
        function.overloadpacket.__name__ in _FOR_GRADIENTS,
    )


def _only_looks(function: Any) -> bool:
    returns = function._schema.returns
    if not (function.is_view and returns and all(each.alias_info is not None for each in returns)):
        return False
    # A composite one, such as `to`, may be met whole, and may copy.
    return not torch._C._dispatch_has_kernel_for_dispatch_key(
        function.name(), "CompositeImplicitAutograd"
    )
