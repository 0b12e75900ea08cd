"""Operations below autograd, noted so that they can run again: same kernels, values and draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

# They move running statistics, arguments 3 and 4, though their schemas do not say so.
_MOVES_STATISTICS = {"native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"}


class Value(NamedTuple):
    """What a storage holds after so many operations have changed it."""

    storage: int
    version: int


@dataclass(frozen=True)
class View:
    """A tensor as a way to look at a value."""

    value: Value
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def of(self, whole: Tensor) -> Tensor:
        """The tensor, given the whole storage as a vector."""
        return whole.view(self.dtype).as_strided(self.size, self.stride, self.offset)


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
        leaves = tree_leaves((self.arguments, self.keywords))
        self.reads = frozenset(leaf.value for leaf in leaves if isinstance(leaf, View))

    def run(self, whole: dict[Value, Tensor], needed: set[Value]) -> None:
        """Run it again on the values in ``whole``, and put its results there.

        Args:
            whole: each value's whole tensor; it holds at least what the operation reads.
            needed: values that must not be overwritten, as others need them later.
        """
        given = {value: whole[value] for value in self.reads}
        for value in self.changes:
            given[value] = given[value].clone() if value in needed else given[value]
        arguments, keywords = mapped(
            View, lambda view: view.of(given[view.value]), (self.arguments, self.keywords)
        )
        if self.function.overloadpacket.__name__ in _MOVES_STATISTICS:
            moved = (None if each is None else each.clone() for each in arguments[3:5])
            arguments = (*arguments[:3], *moved, *arguments[5:])
        with random_as(self.random):
            leaves = tree_leaves(self.function(*arguments, **keywords))
        whole |= {value: whole_of(leaves[place]) for place, value in self.makes.items()}
        whole |= {after: given[before] for before, after in self.changes.items()}


def mapped(kind: type, function: Callable[[Any], Any], tree: Any) -> Any:
    """An operation's arguments with ``function`` applied to those of a kind.

    Each call of PyTorch's own ``tree_map`` leaves a cycle for the garbage collector.
    """
    if isinstance(tree, kind):
        return function(tree)
    if isinstance(tree, dict):
        return {key: mapped(kind, function, value) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(mapped(kind, function, value) for value in tree)
    return tree


def whole_of(tensor: Tensor) -> Tensor:
    """All of a tensor's storage, as a vector."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.detach().as_strided((size,), (1,), 0)


def random_state(function: Any, given: list[Tensor], keywords: Any) -> Random | None:
    """The state of the generator that an operation is about to draw from, if it does."""
    if torch.Tag.nondeterministic_seeded not in function.tags:
        return None
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
