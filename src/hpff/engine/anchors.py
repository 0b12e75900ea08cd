"""What to keep inside modules that are recomputed by blocks, so that a step takes little memory.

For one module that is gradient checkpointing (Chen et al., "Training Deep Nets with Sublinear
Memory Cost", 2016), here for unequal blocks. Where a module's first backward comes right after its
forward, the graph of its last stretches is not let go of as long as that raises no peak: it need
not run again. Where backwards take the most, large values that are cheap to make do not
wait for their use, but are made again, as long as there are few of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hpff.cutting.partition import InnerPoint, OperationKey, Partition
from hpff.engine.reach import Reach
from hpff.engine.stretches import Stretches, stretches_of

_SWEEPS = 3
_MADE_AGAIN = 8  # at most one in so many of the bytes that modules save
_WORTH = 0.02  # of the peak, which making values again must take off it
START = OperationKey("", 0)


@dataclass(frozen=True)
class Kept:
    """What a module keeps of its forward.

    Attributes:
        anchors: after which operations it keeps what they give until its last backward.
        graph_after: after which of these operations it keeps everything until its next backward;
            ``START`` for all of it, None for nothing.
        made_again: no result of these operations waits in a backward for its use: it is made
            again when its turn comes.
    """

    anchors: tuple[InnerPoint, ...] = ()
    graph_after: OperationKey | None = None
    made_again: frozenset[OperationKey] = frozenset()


def kept_inside(
    cut: Partition, reach: Reach, auxiliary_bytes: Callable[[int], int]
) -> tuple[Kept, ...]:
    """For each module what to keep inside it, by bytes on the example.

    Args:
        cut: the modules.
        reach: how far the cascades go.
        auxiliary_bytes: what the losses at module j take.
    """
    moments = list(_moments(reach))
    at_losses = [max(auxiliary_bytes(m.index), 2 * m.output_bytes) for m in cut]
    bypasses = [0, *(module.output_bytes if module.forks else 0 for module in cut[:-1])]
    options = [stretches_of(module, size) for module, size in zip(cut, bypasses, strict=True)]
    chosen = _chosen(options, moments)
    chosen = _leaner(chosen, moments, max(_kept_at_losses(chosen, reach, at_losses)))
    losses = _kept_at_losses(chosen, reach, at_losses)
    peak = max(*losses, *(_size(chosen, moment) for moment in moments))
    at_once = {moment.end for moment in moments if moment.is_first}
    return tuple(
        _kept(own, peak - needed if module.index in at_once else None)
        for module, own, needed in zip(cut, chosen, losses, strict=True)
    )


class _Moment(NamedTuple):
    """A backward of a step.

    Attributes:
        end: the module (from 1) at whose output its loss is.
        through: which module (from 0) it goes through.
        is_last: whether it is that module's last.
        alive: all modules (from 0) whose graphs are there.
    """

    end: int
    through: int
    is_last: bool
    alive: tuple[int, ...]

    @property
    def is_first(self) -> bool:
        """Whether it comes right after the module's forward."""
        return self.through == self.end - 1


def _moments(reach: Reach) -> Iterator[_Moment]:
    for end, length in enumerate(reach.lengths, start=1):
        alive = [i - 1 for i in reach.alive(end)]
        for j in range(end - 1, end - length - 1, -1):
            done = reach.last_use[j] == end
            if j > end - length and end < len(reach.lengths):
                yield _Moment(end, j, False, tuple(alive))
            if done:
                yield _Moment(end, j, True, tuple(alive))
                alive.remove(j)


def _chosen(options: Sequence[Sequence[Stretches]], moments: Sequence[_Moment]) -> list[Stretches]:
    """Of each module's options one, so that little is needed at the worst time of a step.

    Among options that need as little, what spares the most arithmetic. What others keep counts for
    each: so they are chosen in turns, until no one would change.
    """
    touching = [[m for m in moments if j in m.alive] for j in range(len(options))]
    chosen = [min(each, key=lambda option: option.last) for each in options]
    for _ in range(_SWEEPS):
        before = list(chosen)
        for j, each in enumerate(options):
            costs = []
            for option in each:
                chosen[j] = option
                size = max(_size(chosen, moment) for moment in touching[j])
                costs.append((size, -option.spared))
            chosen[j] = each[costs.index(min(costs))]
        if chosen == before:
            break
    return chosen


def _leaner(chosen: list[Stretches], moments: Sequence[_Moment], at_losses: int) -> list[Stretches]:
    """With values made again where backwards take the most, as few as give most of the gain."""
    room = sum(own.module.saved for own in chosen) // _MADE_AGAIN
    found = [(_peak(chosen, moments, at_losses), list(chosen))]
    chosen = list(chosen)
    while found[-1][0] > at_losses:
        worst = max(moments, key=lambda moment: _size(chosen, moment))
        leaner = chosen[worst.through].leaner(is_last=worst.is_last)
        if leaner is None:
            break
        room -= leaner.bytes_made_again - chosen[worst.through].bytes_made_again
        if room < 0:
            break
        chosen[worst.through] = leaner
        found.append((_peak(chosen, moments, at_losses), list(chosen)))
    least = min(peak for peak, _ in found)
    return next(each for peak, each in found if peak <= least * (1 + _WORTH))


def _peak(chosen: Sequence[Stretches], moments: Sequence[_Moment], at_losses: int) -> int:
    return max(at_losses, *(_size(chosen, moment) for moment in moments))


def _size(chosen: Sequence[Stretches], moment: _Moment) -> int:
    """Bytes at the worst time of a backward."""
    own = chosen[moment.through]
    kept = sum(chosen[i].kept for i in moment.alive if i != moment.through)
    return kept + (own.last if moment.is_last else own.carry)


def _kept_at_losses(
    chosen: Sequence[Stretches], reach: Reach, at_losses: Sequence[int]
) -> list[int]:
    """Bytes that are there while each module has its losses."""
    return [
        own + sum(chosen[i - 1].kept for i in reach.alive(j))
        for j, own in enumerate(at_losses, start=1)
    ]


def _kept(own: Stretches, room: int | None) -> Kept:
    """What a module keeps, and everything after an anchor if that fits into the room."""
    starts = [START, *(anchor.operation for anchor in own.anchors)]
    fits = (
        key
        for key, graph in zip(starts, own.graphs, strict=True)
        if room is not None and graph <= room
    )
    makers = (own.module.saves[place].maker for place in own.made_again)
    again = frozenset(maker for maker in makers if maker is not None)
    return Kept(own.anchors, next(fits, None), again)
