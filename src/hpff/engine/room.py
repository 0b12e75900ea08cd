"""What to keep where a step may take more than it does: what spares the most work.

A module keeps its graph from some point on to its last backward, while others are at work too.
Before that point are anchors; after it values that are cheap to make are made again, so that the
graph may begin earlier. Of all beginnings the one is taken that leads to the least work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from hpff.cutting.local_modules import InnerPoint, LocalModule
from hpff.engine.stretches import Stretches
from hpff.engine.tried_anchors import some_points, sparing_anchors

_LARGE = 1000  # saves of a module, from which on a graph may begin at some of its points only


class Room(NamedTuple):
    """Bytes that a module may take, by its own graph and what is made for its backwards.

    Attributes:
        last: in its last backward.
        carry: in the others; None where there are none.
        between: while other modules are at work, or losses.
    """

    last: int
    carry: int | None
    between: int


def with_room(way: Stretches, room: Room, least: float) -> Stretches | None:
    """A way to cut a module whose last stretch's graph is kept, with the least work.

    None where none fits that takes less than so much work in a backward.

    Args:
        way: to cut it, so far.
        room: for the module.
        least: work.
    """
    best = None
    for anchors in _beginnings(way.anchors, way.module):
        if _work_before(anchors) >= least:
            continue
        keeping = replace(way.cut_at(anchors), keeps_last=True)
        fitting = _made_to_fit(keeping, room, least)
        if fitting is not None:
            best, least = fitting, fitting.work
    return best


def _beginnings(
    anchors: tuple[InnerPoint, ...], module: LocalModule
) -> Iterator[tuple[InnerPoint, ...]]:
    """Anchors, after the last of which a graph is kept; the longest graph first."""
    yield ()
    tried = (anchors, *sparing_anchors(module))
    for point in some_points(module)[:: 1 + len(module.saves) // _LARGE]:
        heads = (tuple(a for a in each if a.saved < point.saved) for each in tried)
        yield from ((*head, point) for head in dict.fromkeys(heads))


def _work_before(anchors: tuple[InnerPoint, ...]) -> int:
    """What running the stretches before the last anchor once more takes."""
    return anchors[-1].work - sum(anchor.spared for anchor in anchors) if anchors else 0


def _made_to_fit(way: Stretches, room: Room, work: float) -> Stretches | None:
    """The same with as many values made again as it takes, those first that give most for work.

    None where that does not do, or takes no less than so much work.
    """
    found: Stretches | None = way
    while found is not None and found.work < work:
        if found.last > room.last:
            found = found.leaner(is_last=True, by=found.last - room.last)
        elif room.carry is not None and found.carry > room.carry:
            found = found.with_leaner_graph(found.carry - room.carry)
        elif found.kept > room.between:
            found = found.with_leaner_graph(found.kept - room.between)
        else:
            return found
    return None
