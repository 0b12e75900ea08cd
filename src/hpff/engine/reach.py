"""How far down the cascades reach, and what follows: k as given, or chosen for each module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from hpff.cutting.local_modules import Partition
from hpff.errors import UserError

Cascade = int | Literal["auto"] | Sequence[int]


@dataclass(frozen=True)
class Reach:
    """How far down each cascade goes, and what follows from it.

    Args:
        lengths: for each module j = 1..K, how many modules the cascade that ends at j trains;
            1 where no cascade ends.
    """

    lengths: tuple[int, ...]
    last_use: tuple[int, ...] = field(init=False)
    carried_through: tuple[bool, ...] = field(init=False)

    def __post_init__(self) -> None:
        last_use = list(range(1, len(self.lengths) + 1))
        carried_through = [False] * len(self.lengths)
        for end, length in enumerate(self.lengths, start=1):
            first = end - length + 1
            for module in range(first, end + 1):
                last_use[module - 1] = end
                carried_through[module - 1] |= module > first
        object.__setattr__(self, "last_use", tuple(last_use))
        object.__setattr__(self, "carried_through", tuple(carried_through))

    @classmethod
    def uniform(cls, modules: int, k: int, stride: int = 1) -> Reach:
        """Runs of k adjacent modules are cascades, each a stride further up than the one before.

        The last one ends at the last module, if need be at less than a stride.
        """
        ends = {*range(k, modules, stride), modules}
        return cls(tuple(k if end in ends else 1 for end in range(1, modules + 1)))

    def alive(self, j: int) -> list[int]:
        """The modules (1-based) whose graphs are alive while module j has its losses."""
        return [i for i in range(1, j + 1) if self.last_use[i - 1] >= j]

    def crossing(self, boundary: int) -> list[int]:
        """The ends of the cascades that train modules on both sides of a boundary.

        Args:
            boundary: the module (1-based) before it; 0 for the network's start.
        """
        ends = enumerate(self.lengths, start=1)
        return [end for end, length in ends if end - length < boundary < end]

    def completion_order(self) -> list[int]:
        """The modules (1-based) in the order in which their gradients become final."""
        return sorted(range(1, len(self.lengths) + 1), key=lambda j: (self.last_use[j - 1], -j))


def reach_of(
    cascade: Cascade, cut: Partition, budget: float, stride: int, *, independent: bool
) -> Reach:
    """The reach that a learner's ``cascade`` asks for.

    Args:
        cascade: k; "auto" (see :func:`within`); or for each module how many modules the cascade
            that ends there trains, 1 where none does.
        cut: the model's local modules.
        budget: of "auto", 1 or more.
        stride: of k: how many modules further up the next cascade ends.
        independent: whether the independent level trains every module anyway.

    Raises:
        UserError: this cut has fewer modules, or some module is trained by no level.
    """
    count = len(cut)
    if cascade == "auto":
        reach = within([module.saved + module.output_bytes for module in cut], budget)
    elif isinstance(cascade, int):
        if cascade > count:
            raise UserError(
                f"cascade is {cascade}, expected 1 to {count}, the number of modules (1 turns the "
                "cascade level off)"
            )
        reach = Reach.uniform(count, cascade, stride)
    else:
        reach = Reach(_lengths(cascade, count))
    if not independent:
        _check_all_trained(reach)
    return reach


def _check_all_trained(reach: Reach) -> None:
    if max(reach.lengths) == 1:
        raise UserError("independent=False with cascade=1 turns both levels off; turn one on")
    ends = [(end, length) for end, length in enumerate(reach.lengths, start=1) if length > 1]
    for j in range(1, len(reach.lengths) + 1):
        if not any(end - length < j <= end for end, length in ends):
            raise UserError(
                f"independent=False, and no cascade trains module {j}; let one reach it"
            )


def within(sizes: Sequence[int], budget: float) -> Reach:
    """At each module the longest cascade that fits into the memory that k = 2 needs anyway.

    With k = 2 two adjacent modules are alive at once, and the widest pair sets the peak. Where
    modules are narrower, more of them fit into the same bytes: there the cascade reaches further
    down. Every cascade trains at least two modules.

    Args:
        sizes: bytes of each module while it is alive: what it saves for its backward, and the
            cotangent of its output.
        budget: how many times the widest pair's bytes may be used; 1 or more.
    """
    room = budget * max((sum(pair) for pair in pairwise(sizes)), default=0)
    lengths, first, held = [], 0, 0
    for end, size in enumerate(sizes):
        held += size
        while held > room and end - first > 1:
            held -= sizes[first]
            first += 1
        lengths.append(end - first + 1)
    return Reach(tuple(lengths))


def _lengths(given: Sequence[int], modules: int) -> tuple[int, ...]:
    if len(given) != modules:
        raise UserError(
            f"cascade has {len(given)} lengths, expected one for each of {modules} modules"
        )
    for j, length in enumerate(given, start=1):
        if not 1 <= length <= j:
            raise UserError(f"cascade at module {j} is {length}, expected 1 to {j}")
    if given[-1] == 1 < max(given):
        raise UserError("cascade at the last module is 1; one must end there if any does")
    return tuple(given)
