"""The worst times of a step whose modules are recomputed by blocks, in bytes on the example."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from hpff.cutting.local_modules import Partition
from hpff.engine.reach import Reach
from hpff.engine.room import Room
from hpff.engine.stretches import Stretches


class Moment(NamedTuple):
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


class StepPeaks:
    """What a step takes at its worst times, by the way that each module is cut.

    Args:
        cut: the modules.
        reach: how far the cascades go.
        auxiliary_bytes: what the losses at module j take; 0 where there are none.

    Attributes:
        moments: all backwards, in order.
    """

    def __init__(self, cut: Partition, reach: Reach, auxiliary_bytes: Callable[[int], int]) -> None:
        self._outputs = [module.output_bytes for module in cut]
        self._losses = [auxiliary_bytes(module.index) for module in cut]
        self.moments = list(_moments(reach, self._losses))
        self._anyway = {m: self._there_anyway(m.end, m.alive) for m in self.moments}
        self._at_losses = []
        for j, (losses, output) in enumerate(zip(self._losses, self._outputs, strict=True), 1):
            alive = [i - 1 for i in reach.alive(j)]
            needed = max(losses, 2 * output) + self._there_anyway(j, alive)
            self._at_losses.append((needed, alive))

    def peak(self, ways: Sequence[Stretches]) -> int:
        """At the worst of all times."""
        return max(*self.at_losses(ways), *(self.of(ways, moment) for moment in self.moments))

    def around(self, ways: Sequence[Stretches], j: int) -> int:
        """At the worst of the times at which module j (from 0) is there."""
        losses = zip(self.at_losses(ways), self._at_losses, strict=True)
        there = [size for size, (_, alive) in losses if j in alive]
        return max(*there, *(self.of(ways, moment) for moment in self.moments if j in moment.alive))

    def worst(self, ways: Sequence[Stretches]) -> Moment:
        """The backward that takes the most."""
        return max(self.moments, key=lambda moment: self.of(ways, moment))

    def of(self, ways: Sequence[Stretches], moment: Moment) -> int:
        """At the worst time of a backward."""
        own = ways[moment.through]
        return self.beside(ways, moment) + (own.last if moment.is_last else own.carry)

    def beside(self, ways: Sequence[Stretches], moment: Moment) -> int:
        """What is there of the other modules while a backward goes through one."""
        others = sum(ways[j].kept for j in moment.alive if j != moment.through)
        return others + self._anyway[moment]

    def is_at_once(self, j: int) -> bool:
        """Whether module j (from 0) has one backward, right after its forward."""
        return [m.is_first for m in self.moments if m.through == j] == [True]

    def room(self, ways: Sequence[Stretches], j: int, limit: int) -> Room:
        """What module j (from 0) may take where a step may take so much."""
        beside = {m: self.beside(ways, m) for m in self.moments if m.through == j}
        carries = [size for moment, size in beside.items() if not moment.is_last]
        lasts = [size for moment, size in beside.items() if moment.is_last]
        losses = zip(self.at_losses(ways), self._at_losses, strict=True)
        waiting = [size for size, (_, alive) in losses if j in alive]
        waiting += [self.of(ways, m) for m in self.moments if j in m.alive and m.through != j]
        return Room(
            last=limit - max(lasts),
            carry=limit - max(carries) if carries else None,
            between=limit - max(waiting) + ways[j].kept,
        )

    def at_losses(self, ways: Sequence[Stretches]) -> list[int]:
        """While each module has its losses."""
        return [needed + sum(ways[j].kept for j in alive) for needed, alive in self._at_losses]

    def _there_anyway(self, end: int, alive: Sequence[int]) -> int:
        """What modules begin from where the one before is done, and gradients that wait."""
        begun = sum(self._outputs[j - 1] for j in alive if j and j - 1 not in alive)
        return begun + sum(self._outputs[j] for j in alive if j + 1 < end and self._losses[j])


def _moments(reach: Reach, losses: Sequence[int]) -> Iterator[Moment]:
    for end, length in enumerate(reach.lengths, start=1):
        alive = [i - 1 for i in reach.alive(end)]
        for j in range(end - 1, end - length - 1, -1):
            done = reach.last_use[j] == end
            # The gradient of a module's own loss waits for the last backward, and does not go on.
            goes_on = end < len(reach.lengths) or (j < end - 1 and losses[j] > 0)
            if j > end - length and goes_on:
                yield Moment(end, j, False, tuple(alive))
            if done:
                yield Moment(end, j, True, tuple(alive))
                alive.remove(j)
