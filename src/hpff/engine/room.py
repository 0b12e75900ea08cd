"""What to keep where a step may take more than the least: what spares the most work.

A module keeps its graph from some point on to its last backward, while others are at work too.
Before that point are anchors; after it values that are cheap to make are made again, so that the
graph may begin earlier. Of all beginnings the one is taken that leads to the least work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from hpff.cutting.local_modules import InnerPoint
from hpff.engine.stretches import Stretches, some_points


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


def with_room(ways: Sequence[Stretches], room: Room, least: float) -> Stretches | None:
    """A way to cut a module whose last stretch's graph is kept, with the least work.

    None where none fits that takes less than so much work in a backward.

    Args:
        ways: whose anchors are tried before the last stretch.
        room: for the module.
        least: work.
    """
    best = None
    for head, begins in _beginnings(ways):
        before = 0 if begins is None else begins.work - sum(a.spared for a in (*head, begins))
        if before >= least:
            continue
        anchors = head if begins is None else (*head, begins)
        way = replace(Stretches.at(ways[0].module, ways[0].bypass, anchors), keeps_last=True)
        found = _made_to_fit(way, room, least)
        if found is not None:
            best, least = found, found.work
    return best


def _beginnings(
    ways: Sequence[Stretches],
) -> Iterator[tuple[tuple[InnerPoint, ...], InnerPoint | None]]:
    """Anchors, and the point after them from which on a graph is kept; the longest graph first."""
    yield (), None
    for point in some_points(ways[0].module):
        heads = (tuple(a for a in way.anchors if a.saved < point.saved) for way in ways)
        yield from ((head, point) for head in dict.fromkeys(heads))


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
