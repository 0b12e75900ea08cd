"""A module cut into stretches at its anchors, and the bytes that its backwards take.

Anchors are tensors that are all that the rest of a module needs. While a stretch between two of
them is recomputed, what it saves is there, and the anchors of all modules that are alive. Any other
value need not wait for its use: it can be let go of at once, and be made again when its turn comes,
of what is there then: a ReLU's output of the BatchNorm's input, and that by a convolution.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from operator import itemgetter
from typing import NamedTuple

from hpff.cutting.local_modules import InnerPoint, LocalModule, OperationKey, Save

_SMALL = 32  # what is smaller than a stretch's largest value by this factor may wait


class _Moment(NamedTuple):
    """A moment of a backward through a stretch.

    Attributes:
        size: bytes that are there.
        place: of the next save to go.
        there: bytes that saves before it hold.
    """

    size: int
    place: int
    there: int


@dataclass(frozen=True)
class Stretch:
    """What a module saves from one anchor to the next.

    Attributes:
        saves: the module's.
        places: of those that neither an anchor nor the module's output holds.
        output: bytes of what it passes on.
        around: for each place the bytes of a gradient that waits meanwhile, as it bypasses it.
        made_again: the places of those that do not wait for their use.
    """

    saves: tuple[Save, ...]
    places: tuple[int, ...]
    output: int
    around: tuple[int, ...]
    made_again: frozenset[int] = frozenset()

    @cached_property
    def worst(self) -> _Moment:
        """Of its backward.

        What is saved goes in reverse order. There is the gradient that comes in, and one of the
        size of what goes, which goes on; and the one that bypasses it.
        """
        there = 0
        worst = _Moment(-1, -1, 0)
        for place, around in zip(self.places, self.around, strict=True):
            size, coming = self.saves[place].size, self.saves[place].coming
            needed = there + 2 * size + coming + around
            if needed > worst.size:
                worst = _Moment(needed, place, there)
            there += 0 if place in self.made_again else size
        end = _Moment(self.at_end, len(self.saves), there)
        return max(worst, end, key=itemgetter(0))

    @property
    def at_end(self) -> int:
        """As the gradient of what it passes on comes in, and another goes on."""
        return self.graph + 2 * self.output

    @cached_property
    def graph(self) -> int:
        """Bytes that wait, if all that does is kept."""
        return sum(self.saves[place].size for place in self.places if place not in self.made_again)

    @cached_property
    def work_again(self) -> int:
        """What making values again takes."""
        return sum(self._work_of(place) for place in self.made_again)

    def leaner(self, by: int = 1, before: int | None = None) -> Stretch | None:
        """The same with more values made again, those first that give most bytes for work.

        None where none is left.

        Args:
            by: no more than it takes to come to so many bytes; perhaps fewer, as of two of which
                one is made of the other only one goes at a time.
            before: the place up to which values may go; by default those there at the worst time.
        """
        before = self.worst.place if before is None else before
        least = max((self.saves[place].size for place in self.places), default=0) / _SMALL
        could_go = [
            place
            for place in self.places
            if place < before
            and place not in self.made_again
            and self.saves[place].maker is not None
            and self.saves[place].size > least
        ]
        gone: set[int] = set()
        around: set[int] = set()  # those and what they are made of
        for place in sorted(could_go, key=self._worth, reverse=True):
            made_of = self.saves[place].made_of
            if by > 0 and place not in around and gone.isdisjoint(made_of):
                gone.add(place)
                around.update((place, *made_of))
                by -= self.saves[place].size
        return replace(self, made_again=self.made_again | gone) if gone else None

    def _worth(self, place: int) -> float:
        """Bytes for work."""
        return self.saves[place].size / max(self._work_of(place), 1)

    def _work_of(self, place: int) -> int:
        """What leads to a value, past others that do not wait, or have gone by its turn."""
        found = {place}
        waiting = [place]
        work = 0
        while waiting:
            save = self.saves[waiting.pop()]
            work += save.work
            for source in save.made_of:
                gone = source in self.made_again or source > place
                if gone and source not in found:
                    found.add(source)
                    waiting.append(source)
        return work


@dataclass(frozen=True)
class Stretches:
    """A module, some anchors of it, and the bytes that they lead to.

    Attributes:
        module: which is cut into stretches.
        around: for each of its saves the bytes of a gradient that waits meanwhile.
        anchors: where.
        parts: the stretches.
        keeps_last: whether the graph of the last stretch is there from the forward on.
    """

    module: LocalModule
    around: tuple[int, ...]
    anchors: tuple[InnerPoint, ...]
    parts: tuple[Stretch, ...]
    keeps_last: bool = False

    @classmethod
    def whole(cls, module: LocalModule, bypass: int) -> Stretches:
        """A module without anchors.

        Args:
            module: any.
            bypass: bytes of its input's gradient where something bypasses what comes first, or 0.
        """
        return cls(module, tuple(_around(module, bypass)), (), ()).cut_at(())

    def cut_at(self, anchors: tuple[InnerPoint, ...]) -> Stretches:
        """The same module cut at anchors, where all values wait."""
        module, around = self.module, self.around
        outputs = [*(anchor.output_bytes for anchor in anchors), module.output_bytes]
        parts = tuple(
            Stretch(module.saves, places, output, tuple(around[place] for place in places))
            for places, output in zip(_places(module, anchors), outputs, strict=True)
        )
        return Stretches(module, around, anchors, parts)

    @cached_property
    def kept(self) -> int:
        """By anchors, output and perhaps a graph, while the module is alive."""
        graph = self.parts[-1].graph if self.keeps_last else 0
        return self._held[-1] + self.module.output_bytes + graph

    @cached_property
    def carry(self) -> int:
        """At the worst time of a backward through the module that is not its last."""
        return max(self._sizes(is_last=False))

    @cached_property
    def last(self) -> int:
        """At the worst time of its last, in which anchors go as it passes them."""
        return max(self._sizes(is_last=True))

    def with_graph(self, first: int, *, is_last: bool) -> int:
        """At the worst time of a backward for which the graph from a stretch on was kept."""
        sizes = self._sizes(is_last=is_last)[first:]
        graphs = accumulate((part.graph for part in self.parts[first:-1]), initial=0)
        return max(map(sum, zip(sizes, graphs, strict=True)))

    @cached_property
    def graphs(self) -> list[int]:
        """Bytes that the graph from each stretch on holds, beside anchors and output."""
        return list(accumulate(part.graph for part in reversed(self.parts)))[::-1]

    @property
    def spared(self) -> int:
        """Work that no backward needs again, as its results are kept."""
        return sum(anchor.spared for anchor in self.anchors)

    @property
    def work_again(self) -> int:
        """What making values again takes."""
        return sum(part.work_again for part in self.parts)

    @property
    def makers_again(self) -> frozenset[OperationKey]:
        """The operations that make what does not wait for its use."""
        places = (place for part in self.parts for place in part.made_again)
        makers = (self.module.saves[place].maker for place in places)
        return frozenset(maker for maker in makers if maker is not None)

    def all_waiting(self) -> Stretches:
        """The same with nothing made again."""
        return self.cut_at(self.anchors)

    @property
    def work(self) -> int:
        """What a backward takes besides its own."""
        spared = self.work_from(len(self.parts) - 1) if self.keeps_last else 0
        return self.work_from(0) + self.work_again - spared

    def work_from(self, first: int) -> int:
        """What running the stretches from one on once more takes."""
        before = self.anchors[first - 1].work if first else 0
        return self.module.work - before - sum(anchor.spared for anchor in self.anchors[first:])

    def leaner(self, *, is_last: bool, by: int = 1) -> Stretches | None:
        """The same with more values made again, the best of those there at the worst time.

        Args:
            is_last: of the module's last backward; otherwise of one before.
            by: how many bytes of them, as for a stretch.
        """
        sizes = self._sizes(is_last=is_last)
        worst = sizes.index(max(sizes))
        part = self._parts(is_last=is_last)[worst]
        at_end = is_last and part.at_end + self._stay[worst] > part.worst.size
        return self._with_part(worst, part.leaner(by, len(part.saves) if at_end else None))

    def with_leaner_graph(self, by: int) -> Stretches | None:
        """The same with more values of the last stretch made again, as many as come to so much."""
        last = self.parts[-1]
        return self._with_part(-1, last.leaner(by, before=len(last.saves)))

    def _with_part(self, place: int, leaner: Stretch | None) -> Stretches | None:
        if leaner is None:
            return None
        parts = list(self.parts)
        parts[place] = replace(parts[place], made_again=leaner.made_again)
        return replace(self, parts=tuple(parts))

    @cached_property
    def _held(self) -> list[int]:
        """By the anchors before each stretch."""
        return list(accumulate((anchor.output_bytes for anchor in self.anchors), initial=0))

    def _sizes(self, *, is_last: bool) -> list[int]:
        """At the worst time of a backward through each stretch."""
        held = self._held if is_last else self._held[-1:] * len(self.parts)
        stay = self._stay if is_last else [0] * len(self.parts)
        sizes = [
            self.module.output_bytes + there + max(part.worst.size, part.at_end + own)
            for there, part, own in zip(held, self._parts(is_last=is_last), stay, strict=True)
        ]
        if self.keeps_last and not is_last:  # the graph stays for the last
            graph = self.parts[-1].graph
            sizes[:-1] = [size + graph for size in sizes[:-1]]
            sizes[-1] += graph - self.parts[-1].worst.there
        return sizes

    @cached_property
    def _stay(self) -> list[int]:
        """Of the anchor after each stretch the bytes, if the operation which made it needs it."""
        needed = self.module.needed_by_makers
        sizes = ((anchor.output_bytes, anchor.operation) for anchor in self.anchors)
        return [*(size if (size, maker) in needed else 0 for size, maker in sizes), 0]

    def _parts(self, *, is_last: bool) -> tuple[Stretch, ...]:
        """The stretches: the gradient of the module's own input is not needed in the last."""
        return self._parts_at_last if is_last else self.parts

    @cached_property
    def _parts_at_last(self) -> tuple[Stretch, ...]:
        first = self.parts[0]
        start = min((point.saved for point in self.module.inner), default=self.module.saved)
        begun = bisect_left(self.module.saved_before, start)
        around = (self.around[place] if place >= begun else 0 for place in first.places)
        return (replace(first, around=tuple(around)), *self.parts[1:])


def _around(module: LocalModule, bypass: int) -> list[int]:
    """For each save the bytes of the gradient that bypasses what is done there.

    That is of the last tensor before that is all that comes later needs, if several read it.
    """
    around = []
    points = deque(module.inner)
    before = 0
    for save in module.saves:
        while points and points[0].saved <= before:
            point = points.popleft()
            bypass = point.output_bytes if point.forks else 0
        around.append(bypass)
        before += save.size
    return around


def _places(module: LocalModule, anchors: Sequence[InnerPoint]) -> Iterator[tuple[int, ...]]:
    """Of each stretch the saves that are neither its anchor nor the module's output."""
    saves = module.saves
    before = module.saved_before
    bounds = pairwise([0, *(anchor.saved for anchor in anchors), module.saved])
    ends: list[tuple[int, OperationKey | None]] = [(a.output_bytes, a.operation) for a in anchors]
    ends.append((module.output_bytes, module.maker))
    for (start, end), (output, maker) in zip(bounds, ends, strict=True):
        places = range(bisect_left(before, start), bisect_left(before, end, hi=len(saves)))
        yield tuple(i for i in places if maker is None or saves[i][:2] != (output, maker))
