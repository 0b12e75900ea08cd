"""How far down the cascades reach: k as it is given, or chosen for each module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from hpff.cutting.partition import Partition
from hpff.engine.schedule import Reach
from hpff.errors import UserError

Cascade = int | Literal["auto"] | Sequence[int]


def reach_of(cascade: Cascade, cut: Partition, budget: float, *, independent: bool) -> Reach:
    """The reach that a learner's ``cascade`` asks for.

    Args:
        cascade: k; "auto" (see :func:`within`); or for each module how many modules the cascade
            that ends there trains, 1 where none does.
        budget: of "auto".
        independent: whether the independent level trains every module anyway.

    Raises:
        UserError: a value is out of its range, or some module is trained by no level.
    """
    count = len(cut)
    if not (isinstance(budget, (int, float)) and 1 <= budget < math.inf):
        raise UserError(f"cascade_budget={budget!r}; expected a number of at least 1")
    if cascade == "auto":
        reach = within([module.saved + module.output_bytes for module in cut], budget)
    elif isinstance(cascade, Sequence) and not isinstance(cascade, str):
        reach = Reach(_lengths(cascade, count))
    elif isinstance(cascade, bool) or not isinstance(cascade, int) or cascade < 1:
        raise UserError(
            f"cascade={cascade!r}; expected a whole number, 1 or more, 'auto', or a length for "
            "each module"
        )
    elif cascade > count:
        raise UserError(
            f"cascade={cascade} is more than modules={count}; expected 1 to {count} "
            "(cascade=1 turns the cascade level off)"
        )
    else:
        reach = Reach.uniform(count, cascade)
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


def _lengths(given: Sequence[object], modules: int) -> tuple[int, ...]:
    if len(given) != modules:
        raise UserError(
            f"cascade has {len(given)} lengths; expected one for each of {modules} modules"
        )
    lengths = []
    for j, length in enumerate(given, start=1):
        if isinstance(length, bool) or not isinstance(length, int) or not 1 <= length <= j:
            raise UserError(
                f"cascade at module {j} is {length!r}; expected a whole number from 1 to {j}"
            )
        lengths.append(length)
    if lengths[-1] == 1 < max(lengths):
        raise UserError("cascade at the last module is 1; one must end there if any does")
    return tuple(lengths)
