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

    Args:
        ways: whose anchors are tried before the last stretch.
        in_backward: bytes that its backward may take.
        between: bytes that it may keep between forward and backward.
    """
    best = None
    for begun in _beginnings(ways):
        if best is None or begun.work_in_all < best.work_in_all:
            best = _made_to_fit(begun, in_backward, between, best) or best
    return best


def _beginnings(ways: Sequence[Stretches]) -> Iterator[Stretches]:
    """With a last stretch from each point on, the longest first, where all values wait."""
    module, bypass = ways[0].module, ways[0].bypass
    yield Stretches.at(module, bypass, ())
    for point in module.inner:
        heads = (tuple(a for a in way.anchors if a.saved < point.saved) for way in ways)
        for head in dict.fromkeys(heads):
            yield Stretches.at(module, bypass, (*head, point))


def _made_to_fit(
    way: Stretches, in_backward: int, between: int, best: Stretches | None
) -> Stretches | None:
    """The same with as many values made again as it takes, those first that give most for work.

    None where that does not do, or takes no less work than the best.
    """
    found: Stretches | None = way
    while found is not None and (best is None or found.work_in_all < best.work_in_all):
        if found.last > in_backward:
            found = found.leaner(is_last=True, by=found.last - in_backward)
        elif found.kept + found.parts[-1].graph > between:
            found = found.with_leaner_graph(found.kept + found.parts[-1].graph - between)
        else:
            return found
    return None
