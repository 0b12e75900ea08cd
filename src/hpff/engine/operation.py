"""Operations below autograd, noted so that they can run again: same kernels, values and draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hpff.engine.leaves import leaves_of, mapped
from hpff.engine.traits import traits_of


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
        if traits.moves_statistics and arguments[5]:
            # In training they change nothing but types, which weights have, too.
            left_out = arguments[1] is not None
            moved = (None if left_out or each is None else each.clone() for each in arguments[3:5])
            arguments = (*arguments[:3], *moved, *arguments[5:])
        with random_as(self.random), torch.set_grad_enabled(traits.for_gradients):
            leaves = leaves_of(self.function(*arguments, **keywords))
        whole |= {value: whole_of(leaves[place]) for place, value in self.makes.items()}
        whole |= {after: given[before] for before, after in self.changes.items()}


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
