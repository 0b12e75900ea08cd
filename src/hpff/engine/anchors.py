"""What to keep inside modules that are recomputed by blocks, so that a step takes little memory.

For one module that is gradient checkpointing (Chen et al., "Training Deep Nets with Sublinear
Memory Cost", 2016), here for unequal blocks. Where a module's first backward comes right after its
forward, the graph of its last stretches is not let go of as long as that raises no peak: it need
not run again. Where backwards take the most, large values that are cheap to make do not
wait for their use, but are made again, as long as that takes little work. Where a step may take
more than the least, graphs stay to a module's last backward: see :mod:`hpff.engine.room`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hpff.cutting.local_modules import InnerPoint, OperationKey, Partition
from hpff.engine.reach import Reach
from hpff.engine.room import with_room
from hpff.engine.step_peaks import StepPeaks
from hpff.engine.stretches import Stretches
from hpff.engine.tried_anchors import stretches_of

_SWEEPS = 3
_MADE_AGAIN = 0.25  # of a forward's work, at most
_SEARCHED = 1000  # saves of a module, up to which making values again has a say in its anchors
_WORTH = 0.005  # of the peak, which making values again must take off it
_SLIGHT = 0.02  # of the peak, by which gradients of parameters may raise it unseen
START = OperationKey("", 0)
_Size = Callable[[Stretches], int]
# Turns end where no module alone would change: from many anchors, and from few.
_FIRST_SIZES: tuple[_Size, ...] = (lambda way: way.last, lambda way: way.kept)


@dataclass(frozen=True)
class Kept:
    """What a module keeps of its forward.

    Attributes:
        anchors: after which operations it keeps what they give until its last backward.
        graph_after: after which of these operations it keeps everything, but what is made again,
            until its next backward; ``START`` for all of it, None for nothing.
        made_again: no result of these operations waits in a backward for its use: it is made
            again when its turn comes.
        waits: whether what it keeps until its next backward stays until its last.
    """

    anchors: tuple[InnerPoint, ...] = ()
    graph_after: OperationKey | None = None
    made_again: frozenset[OperationKey] = frozenset()
    waits: bool = False


def kept_inside(
    cut: Partition,
    reach: Reach,
    auxiliary_bytes: Callable[[int], int],
    budget: float = 1.0,
    gradients: int = 0,
) -> tuple[Kept, ...]:
    """For each module what to keep inside it, by bytes on the example.

    Args:
        cut: the modules.
        reach: how far the cascades go.
        auxiliary_bytes: what the losses at module j take; 0 where there are none.
        budget: how many times the least that a step can take it may take, to recompute less.
        gradients: bytes of all parameters' gradients, for a batch as large as the example. They
            come one after the other, so that what takes more late in a step takes that besides.
    """
    peaks = StepPeaks(cut, reach, auxiliary_bytes)
    carried = {moment.through for moment in peaks.moments if not moment.is_last}
    bypasses = [0, *(module.output_bytes if module.forks else 0 for module in cut[:-1])]
    leanest = [
        [_leanest(way, is_last=j not in carried) for way in stretches_of(module, bypass)]
        for j, (module, bypass) in enumerate(zip(cut, bypasses, strict=True))
    ]
    starts = [*(_chosen(leanest, peaks, size) for size in _FIRST_SIZES), _fewest(leanest)]
    ways = min((_leaner(start, peaks) for start in starts), key=peaks.peak)
    limit = int(budget * peaks.peak(ways))
    counted = gradients if gradients > _SLIGHT * limit else 0
    roomy = _with_room(ways, peaks, limit - counted)
    plans = (_Plan.of(each, peaks, limit) for each in (ways, roomy))
    return min(plans, key=lambda plan: plan.work).kept


class _Plan(NamedTuple):
    """What modules keep, and what a step then takes besides the backwards' own work."""

    kept: tuple[Kept, ...]
    work: int

    @classmethod
    def of(cls, ways: Sequence[Stretches], peaks: StepPeaks, limit: int) -> _Plan:
        """With graphs for backwards that come at once, where a step may take so much."""
        places = [_graph_that_fits(ways, j, peaks, limit) for j in range(len(ways))]
        kept = (
            _kept(way, place, waits=not peaks.is_at_once(j))
            for j, (way, place) in enumerate(zip(ways, places, strict=True))
        )
        work = sum(ways[moment.through].work for moment in peaks.moments)
        return cls(tuple(kept), work - sum(map(_spared, ways, places)))


def _kept(way: Stretches, place: int | None, *, waits: bool) -> Kept:
    """What a module keeps.

    Args:
        way: it is cut.
        place: of the first stretch whose graph is kept for a backward that comes at once.
        waits: whether graphs that stay to the end wait for other modules.
    """
    starts = [START, *(anchor.operation for anchor in way.anchors)]
    if way.keeps_last:
        return Kept(way.anchors, starts[-1], way.makers_again, waits)
    return Kept(way.anchors, None if place is None else starts[place], way.makers_again)


def _spared(way: Stretches, place: int | None) -> int:
    """Work that a backward which comes at once does not need."""
    return 0 if place is None or way.keeps_last else way.work_from(place)


def _with_room(ways: Sequence[Stretches], peaks: StepPeaks, limit: int) -> list[Stretches]:
    """The same with graphs that stay to the end, and fewer values made again, within a limit.

    Of a cascade the last modules come first, whose graphs wait the least.
    """
    found = list(ways)
    for j in reversed(range(len(found))):
        backwards = sum(moment.through == j for moment in peaks.moments)
        spared = _spared(found[j], _graph_that_fits(found, j, peaks, limit))
        least = found[j].work - spared / backwards
        found[j] = with_room(found[j], peaks.room(found, j, limit), least) or found[j]
    for j, way in enumerate(found):
        before = peaks.around(found, j)
        found[j] = way if way.keeps_last else way.all_waiting()
        if peaks.around(found, j) > max(before, limit):
            found[j] = way
    return found


def _leanest(way: Stretches, *, is_last: bool) -> Stretches:
    """A way with values made again while that makes a backward of its module leaner."""
    if len(way.module.saves) > _SEARCHED:
        return way
    found = [way]
    while (leaner := found[-1].leaner(is_last=is_last)) is not None:
        if leaner.work_again > way.module.work * _MADE_AGAIN:
            break
        found.append(leaner)
    return min(found, key=lambda each: each.last if is_last else each.carry)


def _chosen(
    options: Sequence[Sequence[Stretches]], peaks: StepPeaks, at_first: _Size
) -> list[Stretches]:
    """Of each module's options one, so that little is needed at the worst time of a step.

    Among options that need as little, what spares the most work. What others keep counts for
    each: so they are chosen in turns, until no one would change.

    Args:
        options: ways to cut each module.
        peaks: of the step.
        at_first: of what each module's choice is the least before the turns.
    """
    touching = [[m for m in peaks.moments if j in m.alive] for j in range(len(options))]
    chosen = [min(each, key=at_first) for each in options]
    for _ in range(_SWEEPS):
        before = list(chosen)
        for j, each in enumerate(options):
            costs = []
            for option in each:
                chosen[j] = option
                size = max(peaks.of(chosen, moment) for moment in touching[j])
                costs.append((size, -option.spared))
            chosen[j] = each[costs.index(min(costs))]
        if chosen == before:
            break
    return chosen


def _fewest(options: Sequence[Sequence[Stretches]]) -> list[Stretches]:
    """Of each module's options that with the fewest anchors: values made again may do more."""
    return [min(each, key=lambda way: len(way.anchors)) for each in options]


def _leaner(ways: Sequence[Stretches], peaks: StepPeaks) -> list[Stretches]:
    """With values made again where backwards take the most, as few as give most of the gain."""
    now = [way.all_waiting() for way in ways]
    room = sum(way.module.work for way in now) * _MADE_AGAIN
    at_losses = max(peaks.at_losses(now))
    found = [(peaks.peak(now), list(now))]
    while found[-1][0] > at_losses:
        worst = peaks.worst(now)
        leaner = now[worst.through].leaner(is_last=worst.is_last)
        if leaner is None:
            break
        room -= leaner.work_again - now[worst.through].work_again
        if room < 0:
            break
        now[worst.through] = leaner
        found.append((peaks.peak(now), list(now)))
    least = min(peak for peak, _ in found)
    return next(each for peak, each in found if peak <= least * (1 + _WORTH))


def _graph_that_fits(ways: Sequence[Stretches], j: int, peaks: StepPeaks, limit: int) -> int | None:
    """From which stretch on module j (from 0) keeps all for a backward that comes at once."""
    first = next((m for m in peaks.moments if m.is_first and m.through == j), None)
    if first is None:
        return None
    way = ways[j]
    losses, beside = peaks.at_losses(ways)[j], peaks.beside(ways, first)
    for place, graph in enumerate(way.graphs):
        in_backward = beside + way.with_graph(place, is_last=first.is_last)
        if max(losses + graph, in_backward) <= limit:
            return place
    return None
