"""Operations below autograd, noted so that they can run again: same kernels, values and draws."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hpff.cutting.operations import is_dear

# They move running statistics, arguments 3 and 4, though their schemas do not say so.
_MOVES_STATISTICS = {"native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"}
# It gives what its backward works on only where gradients are enabled.
_FOR_GRADIENTS = {"mkldnn_rnn_layer"}


class Value(NamedTuple):
    """What a storage holds after so many operations have changed it."""

    storage: int
    version: int


@dataclass(slots=True)
class View:
    """A tensor as a way to look at a value."""

    value: Value
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def of(self, whole: Tensor) -> Tensor:
        """The tensor, given any tensor on its storage."""
        source = whole if whole.dtype == self.dtype else _as_vector(whole).view(self.dtype)
        return source.as_strided(self.size, self.stride, self.offset)


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


@dataclass(eq=False)
class Operation:
    """One operation; tensors that were made on the tape stand in its arguments as views.

    Attributes:
        reads: the values it needs.
        makes: the values it makes, by their places among the leaves of its output.
        changes: the values it changes in place, and what they become.
        random: the state of the random generator before, if it draws numbers.
    """

    function: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    reads: frozenset[Value]
    makes: dict[int, Value]
    changes: dict[Value, Value]
    random: Random | None
    place: int

    def results(self) -> Iterator[Value]:
        yield from self.makes.values()
        yield from self.changes.values()

    def replace(self, view_of: Callable[[Tensor], View | None]) -> None:
        """Put views into the place of tensors."""
        self.arguments, self.keywords = mapped(
            Tensor, lambda t: view_of(t) or t, (self.arguments, self.keywords)
        )
        leaves = leaves_of((self.arguments, self.keywords))
        self.reads = frozenset(leaf.value for leaf in leaves if isinstance(leaf, View))

    def run(self, whole: dict[Value, Tensor], needed: set[Value]) -> None:
        """Run it again on the values in ``whole``, and put its results there.

        Args:
            whole: for each value a tensor on its storage; there is at least what is read.
            needed: values that must not be overwritten, as others need them later.
        """
        given = {value: whole[value] for value in self.reads}
        for value in self.changes:
            given[value] = copy_of(given[value]) if value in needed else given[value]
        arguments, keywords = mapped(
            View, lambda view: view.of(given[view.value]), (self.arguments, self.keywords)
        )
        traits = traits_of(self.function)
        if traits.moves_statistics:
            moved = (None if each is None else each.clone() for each in arguments[3:5])
            arguments = (*arguments[:3], *moved, *arguments[5:])
        with random_as(self.random), torch.set_grad_enabled(traits.for_gradients):
            leaves = leaves_of(self.function(*arguments, **keywords))
        whole |= {value: whole_of(leaves[place]) for place, value in self.makes.items()}
        whole |= {after: given[before] for before, after in self.changes.items()}


_NESTS = (tuple, list, dict)


def mapped(kind: type, function: Callable[[Any], Any], tree: Any) -> Any:
    """An operation's arguments with ``function`` applied to those of a kind.

    Each call of PyTorch's own ``tree_map`` leaves a cycle for the garbage collector.
    """
    if isinstance(tree, kind):
        return function(tree)
    nest = type(tree)
    if nest not in _NESTS:
        return tree
    if nest is dict:
        return {key: mapped(kind, function, value) for key, value in tree.items()}
    return nest([mapped(kind, function, value) for value in tree])


def leaves_of(tree: Any) -> list[Any]:
    """What tuples, lists and dicts hold, in order; several times as fast as ``tree_leaves``."""
    nest = type(tree)
    if nest not in _NESTS:
        return [tree]
    found: list[Any] = []
    for value in tree.values() if nest is dict else tree:
        if type(value) in _NESTS:
            found += leaves_of(value)
        else:
            found.append(value)
    return found


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors that tuples, lists and dicts hold, in order."""
    return [leaf for leaf in leaves_of(tree) if isinstance(leaf, Tensor)]


def whole_of(tensor: Tensor) -> Tensor:
    """What holds a tensor's storage, and no graph."""
    return tensor.detach()


def copy_of(whole: Tensor) -> Tensor:
    """A copy of all of a storage, as a vector."""
    return _as_vector(whole).clone()


def _as_vector(whole: Tensor) -> Tensor:
    size = whole.untyped_storage().nbytes() // whole.element_size()
    return whole.as_strided((size,), (1,), 0)


def random_state(given: list[Tensor], keywords: dict[str, Any]) -> Random:
    """The state of the generator that an operation which draws is about to draw from."""
    device = given[0].device if given else torch.device(keywords.get("device") or "cpu")
    on_cuda = device.type == "cuda"
    return Random(device, torch.cuda.get_rng_state(device) if on_cuda else torch.get_rng_state())


class Random(NamedTuple):
    """The state of a device's random generator."""

    device: torch.device
    state: Tensor


@contextmanager
def random_as(random: Random | None) -> Iterator[None]:
    """Inside, random numbers are those that came then; outside nothing changes."""
    if random is None:
        yield
        return
    on_cuda = random.device.type == "cuda"
    with torch.random.fork_rng(devices=[random.device] if on_cuda else []):
        if on_cuda:
            torch.cuda.set_rng_state(random.state, random.device)
        else:
            torch.set_rng_state(random.state)
        yield
