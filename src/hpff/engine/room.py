"""What to keep where a step may take more than the least: what spares the most work.

A module whose one backward comes right after its forward keeps its graph from some point on. Before
it are anchors, as few as take the least; after it values that are cheap to make are made again, so
that the graph may begin earlier. Of all beginnings the one is taken that leads to the least work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hpff.engine.stretches import Stretches


def with_room(ways: Sequence[Stretches], in_backward: int, between: int) -> Stretches | None:
    """A way to cut a module whose last stretch's graph is kept, with the least work.

    None where that takes as much as without a graph, or none fits.

    Args:
        ways: whose anchors are tried before the last stretch; the first is what it must better.
        in_backward: bytes that its backward may take.
        between: bytes that it may keep between forward and backward.
    """
    best, least = None, ways[0].work_without_graph
    for begun in _beginnings(ways):
        found = _made_to_fit(begun, in_backward, between, least)
        if found is not None:
            best, least = found, found.work_in_all
    return best


def _beginnings(ways: Sequence[Stretches]) -> Iterator[Stretches]:
    """With a last stretch from each point on, the longest first, where all values wait."""
    module, bypass = ways[0].module, ways[0].bypass
    yield Stretches.at(module, bypass, ())
    for point in module.inner:
        heads = (tuple(a for a in way.anchors if a.saved < point.saved) for way in ways)
        for head in dict.fromkeys(heads):
            yield Stretches.at(module, bypass, (*head, point))


def _made_to_fit(way: Stretches, in_backward: int, between: int, work: int) -> Stretches | None:
    """The same with as many values made again as it takes, those first that give most for work.

    None where that does not do, or takes no less than so much work.
    """
    found: Stretches | None = way
    while found is not None and found.work_in_all < work:
        if found.last > in_backward:
            found = found.leaner(is_last=True, by=found.last - in_backward)
        elif found.kept + found.parts[-1].graph > between:
            found = found.with_leaner_graph(found.kept + found.parts[-1].graph - between)
        else:
            return found
    return None
