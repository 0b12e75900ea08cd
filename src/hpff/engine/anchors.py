"""What to keep inside modules that are recomputed by blocks, so that a step takes little memory.

A module keeps some of what its blocks pass on, its anchors: tensors that are all that the rest of
it needs. While a stretch between two of them is recomputed, what it saves is there, and the
anchors of all modules that are alive. (For one module that is gradient checkpointing: Chen et al.,
"Training Deep Nets with Sublinear Memory Cost", 2016, here for unequal blocks.) Where a module's
first backward comes right after its forward, the graph of its last stretches is not let go of as
long as that raises no peak: it need not run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

from hpff.cutting.partition import InnerPoint, LocalModule, OperationKey, Partition
from hpff.engine.reach import Reach

Anchors = tuple[InnerPoint, ...]
_TRIALS = 48  # stretches of a module that are tried as its longest
_SWEEPS = 3
_POINTS = 128  # of a module that are tried at most
START = OperationKey("", 0)


@dataclass(frozen=True)
class Kept:
    """What a module keeps of its forward.

    Attributes:
        anchors: after which operations it keeps what they give until its last backward.
        graph_after: after which of these operations it keeps everything until its next backward;
            ``START`` for all of it, None for nothing.
    """

    anchors: Anchors = ()
    graph_after: OperationKey | None = None


def kept_inside(
    cut: Partition, reach: Reach, auxiliary_bytes: Callable[[int], int]
) -> tuple[Kept, ...]:
    """For each module what to keep inside it, by bytes on the example.

    Args:
        cut: the modules.
        reach: how far the cascades go.
        auxiliary_bytes: what the losses at module j take.
    """
    options = [_options(module) for module in cut]
    moments = list(_moments(reach))
    chosen = _chosen(options, moments)
    losses = [
        chosen_bytes + max(auxiliary_bytes(module.index), 2 * module.output_bytes)
        for module, chosen_bytes in zip(cut, _kept_at_losses(chosen, reach), strict=True)
    ]
    peak = max(*losses, *(_size(chosen, moment) for moment in moments))
    return tuple(
        Kept(option.anchors, _tail(module, option.anchors, peak - needed))
        if module.index in {moment.end for moment in moments if moment.is_first}
        else Kept(option.anchors)
        for module, option, needed in zip(cut, chosen, losses, strict=True)
    )


@dataclass(frozen=True)
class _Option:
    """Some anchors of a module, and the bytes that they lead to.

    Attributes:
        kept: by the anchors and the module's output, while the module is alive.
        carry: at the worst time of a backward through the module that is not its last.
        last: at the worst time of its last, in which anchors go as it passes them.
    """

    anchors: Anchors
    kept: int
    carry: int
    last: int

    @classmethod
    def of(cls, module: LocalModule, anchors: Anchors) -> _Option:
        held, worst_last, worst, start = 0, 0, 0, 0
        ends = [(p.saved, p.output_bytes, p.is_saved) for p in anchors]
        for end, output, is_saved in [*ends, (module.saved, module.output_bytes, True)]:
            needed = _needed(module, start, end, output, is_saved=is_saved)
            worst, worst_last = max(worst, needed), max(worst_last, held + needed)
            held += output
            start = end
        return cls(anchors, held, held + worst, module.output_bytes + worst_last)


def _needed(module: LocalModule, start: int, end: int, output: int, *, is_saved: bool) -> int:
    """Bytes at the worst time of a backward through a stretch, its end's output apart.

    What it saves goes in reverse order, and there are gradients of the size of what goes: one
    comes in, and another goes on.
    """
    before = accumulate(module.saves, initial=0)
    sizes = [s for s, total in zip(module.saves, before, strict=False) if start <= total < end]
    if is_saved and output in sizes:
        del sizes[-1 - sizes[::-1].index(output)]
    there = list(accumulate(sizes))
    whole = there[-1] if there else 0
    return max(whole + 2 * output, *(t + 2 * s for t, s in zip(there, sizes, strict=True)), 0)


def _options(module: LocalModule) -> list[_Option]:
    points = module.inner[:: len(module.inner) // _POINTS + 1]
    ends = [0, *(point.saved for point in points), module.saved]
    stretches = sorted({b - a for i, a in enumerate(ends) for b in ends[i + 1 :]})
    step = max(1, len(stretches) // _TRIALS)
    tried = (*stretches[::step], stretches[-1])
    found = {_fewest(points, module.saved, longest) for longest in tried}
    return [_Option.of(module, anchors) for anchors in sorted(found, key=len)]


def _fewest(points: Anchors, saved: int, longest: int) -> Anchors:
    """The anchors with the fewest bytes of which no stretch is too long, where that can be."""
    ends = [0, *(point.saved for point in points), saved]
    longest = max(longest, *(end - start for start, end in pairwise(ends)))
    cost, before = [0], [0]
    for i, end in enumerate(ends[1:], start=1):
        best = min((b for b in range(i) if end - ends[b] <= longest), key=cost.__getitem__)
        before.append(best)
        cost.append(cost[best] + (points[i - 1].output_bytes if i <= len(points) else 0))
    chosen, i = [], before[-1]
    while i > 0:
        chosen.append(points[i - 1])
        i = before[i]
    return tuple(reversed(chosen))


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


def _chosen(options: Sequence[Sequence[_Option]], moments: Sequence[_Moment]) -> list[_Option]:
    """Of each module's options one, so that little is needed at the worst time of a step.

    What others keep counts for each: so they are chosen in turns, until no one would change.
    """
    touching = [[m for m in moments if j in m.alive] for j in range(len(options))]
    chosen = [min(each, key=lambda option: option.last) for each in options]
    for _ in range(_SWEEPS):
        before = list(chosen)
        for j, each in enumerate(options):
            sizes = []
            for option in each:
                chosen[j] = option
                sizes.append(max(_size(chosen, moment) for moment in touching[j]))
            chosen[j] = each[sizes.index(min(sizes))]
        if chosen == before:
            break
    return chosen


def _size(chosen: Sequence[_Option], moment: _Moment) -> int:
    """Bytes at the worst time of a backward."""
    own = chosen[moment.through]
    kept = sum(chosen[i].kept for i in moment.alive if i != moment.through)
    return kept + (own.last if moment.is_last else own.carry)


def _kept_at_losses(chosen: Sequence[_Option], reach: Reach) -> list[int]:
    """Bytes that are kept while each module has its losses."""
    count = len(reach.lengths)
    return [sum(chosen[i - 1].kept for i in reach.alive(j)) for j in range(1, count + 1)]


def _tail(module: LocalModule, anchors: Anchors, room: int) -> OperationKey | None:
    """After which anchor everything fits into the room."""
    starts = [(START, 0), *((anchor.operation, anchor.saved) for anchor in anchors)]
    return next((key for key, before in starts if module.saved - before <= room), None)
