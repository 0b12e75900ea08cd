"""A module cut into stretches at its anchors, and the bytes that its backwards take.

Anchors are tensors that are all that the rest of a module needs. While a stretch between two of
them is recomputed, what it saves is there, and the anchors of all modules that are alive. What no
convolution or matrix product reads, such as a BatchNorm's input, can be let go of at once, and be
made again when its turn comes: that takes one operation more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from operator import itemgetter
from typing import NamedTuple

from hpff.cutting.partition import InnerPoint, LocalModule

_TRIALS = 48  # stretches of a module that are tried as its longest
_POINTS = 128  # of a module that are tried at most


class _Moment(NamedTuple):
    """A moment of a backward through a stretch: the bytes there, and the next save to go."""

    size: int
    place: int


@dataclass(frozen=True)
class Stretches:
    """Some anchors of a module, and the bytes that they lead to.

    Attributes:
        module: which is cut into stretches.
        bypass_bytes: of its input's gradient where something in it bypasses the rest, or 0.
        anchors: where.
        made_again: the places of those of ``module.saves`` that do not wait for their use.
    """

    module: LocalModule
    bypass_bytes: int
    anchors: tuple[InnerPoint, ...]
    made_again: frozenset[int] = frozenset()

    @cached_property
    def kept(self) -> int:
        """By the anchors and the module's output, while the module is alive."""
        return self._held[-1] + self.module.output_bytes

    @cached_property
    def carry(self) -> int:
        """At the worst time of a backward through the module that is not its last."""
        return self.kept + max(_worst(self._moments(is_last=False)))

    @cached_property
    def last(self) -> int:
        """At the worst time of its last, in which anchors go as it passes them."""
        needed = _worst(self._moments(is_last=True))
        return self.module.output_bytes + max(map(sum, zip(self._held, needed, strict=True)))

    @property
    def spared(self) -> int:
        """Arithmetic that no backward needs again, as its results are kept."""
        return sum(anchor.spared for anchor in self.anchors)

    @cached_property
    def bytes_made_again(self) -> int:
        """Of the values that are made again."""
        return sum(self.module.saves[place].size for place in self.made_again)

    def leaner(self, *, is_last: bool) -> Stretches | None:
        """The same with one more value made again, the largest there at the worst time.

        Args:
            is_last: of the module's last backward; otherwise of one before.
        """
        stretches = self._moments(is_last=is_last)
        held = self._held if is_last else [0] * len(self._held)
        sizes = [there + needed for there, needed in zip(held, _worst(stretches), strict=True)]
        moments = stretches[sizes.index(max(sizes))]
        next_to_go = max(moments, key=itemgetter(0)).place
        before = (moment.place for moment in moments if moment.place < next_to_go)
        could_go = [place for place in before if self._could_go(place)]
        if not could_go:
            return None
        largest = max(could_go, key=lambda place: self.module.saves[place].size)
        return replace(self, made_again=self.made_again | {largest})

    def _could_go(self, place: int) -> bool:
        save = self.module.saves[place]
        return save.maker is not None and not save.is_for_dear and place not in self.made_again

    @cached_property
    def _held(self) -> list[int]:
        """By the anchors before each stretch."""
        return list(accumulate((anchor.output_bytes for anchor in self.anchors), initial=0))

    @cached_property
    def _places(self) -> list[list[int]]:
        """Of each stretch the saves that are neither its anchor nor the module's output."""
        saves = self.module.saves
        before = list(accumulate((save.size for save in saves), initial=0))
        bounds = pairwise([0, *(anchor.saved for anchor in self.anchors), self.module.saved])
        ends = [(anchor.output_bytes, anchor.is_saved) for anchor in self.anchors]
        ends.append((self.module.output_bytes, True))
        found = []
        for (start, end), (output, is_saved) in zip(bounds, ends, strict=True):
            places = [i for i in range(len(saves)) if start <= before[i] < end]
            own = [place for place in places if saves[place].size == output]
            if is_saved and own:
                places.remove(own[-1])
            found.append(places)
        return found

    @cached_property
    def graphs(self) -> list[int]:
        """Bytes that the graph from each stretch on holds, beside anchors and output."""
        own = [
            sum(self.module.saves[i].size for i in places if i not in self.made_again)
            for places in self._places
        ]
        return list(accumulate(reversed(own)))[::-1]

    def _moments(self, *, is_last: bool) -> list[list[_Moment]]:
        """Of a backward through each stretch."""
        outputs = [*(anchor.output_bytes for anchor in self.anchors), self.module.output_bytes]
        bypasses = [
            0 if is_last else self.bypass_bytes,
            *(anchor.output_bytes if anchor.forks else 0 for anchor in self.anchors),
        ]
        stretches = zip(self._places, outputs, bypasses, strict=True)
        return [list(self._backward(*stretch)) for stretch in stretches]

    def _backward(self, places: Sequence[int], output: int, bypass: int) -> Iterator[_Moment]:
        """What is saved goes in reverse order.

        There are gradients of the size of what goes: one comes in, and another goes on. A bypass
        has given the input its gradient by then, which is the output's own where nothing changes
        the size.
        """
        there = 0 if bypass == output else bypass
        for place in places:
            size = self.module.saves[place].size
            yield _Moment(there + 3 * size, place)
            there += 0 if place in self.made_again else size
        yield _Moment(there + 2 * output, len(self.module.saves))


def _worst(stretches: Sequence[Sequence[_Moment]]) -> list[int]:
    return [max(moment.size for moment in moments) for moments in stretches]


def stretches_of(module: LocalModule, bypass_bytes: int) -> list[Stretches]:
    """Ways to cut a module: for each longest stretch the one whose anchors take the least.

    They come in an order of their own, as of two that are equally good the first is chosen.
    """
    points = module.inner[:: len(module.inner) // _POINTS + 1]
    ends = [0, *(point.saved for point in points), module.saved]
    lengths = sorted({b - a for i, a in enumerate(ends) for b in ends[i + 1 :]})
    step = max(1, len(lengths) // _TRIALS)
    tried = (*lengths[::step], lengths[-1])
    found = {_fewest(points, module.saved, longest) for longest in tried}
    ordered = sorted(found, key=lambda anchors: (len(anchors), [-a.saved for a in anchors]))
    return [Stretches(module, bypass_bytes, anchors) for anchors in ordered]


def _fewest(points: Sequence[InnerPoint], saved: int, longest: int) -> tuple[InnerPoint, ...]:
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
