"""Which anchors of a module are tried: those with the fewest bytes, or that spare work."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

from hpff.cutting.local_modules import InnerPoint, LocalModule
from hpff.engine.stretches import Stretches

_TRIALS = 48  # stretches of a module that are tried as its longest
_HEADS = 6  # the same before a graph that is kept
_PRICES = 3  # of work in bytes, at which anchors are chosen
_AT_LEAST = 1.001  # times a price, or what is just worth it is lost by rounding
_POINTS = 128  # of a module that are tried at most

_Value = TypeVar("_Value")


def some_points(module: LocalModule) -> tuple[InnerPoint, ...]:
    """Of a module's points as many as can be tried."""
    return module.inner[:: len(module.inner) // _POINTS + 1]


def stretches_of(module: LocalModule, bypass: int) -> list[Stretches]:
    """Ways to cut a module: for each longest stretch the one whose anchors take the least.

    They come in an order of their own, as of two that are equally good the first is chosen.
    """
    found = {_fewest(module, longest) for longest in _lengths(module, _TRIALS)}
    ordered = sorted(found, key=lambda anchors: (len(anchors), [-a.saved for a in anchors]))
    whole = Stretches.whole(module, bypass)
    return [whole.cut_at(anchors) for anchors in ordered]


def sparing_anchors(module: LocalModule) -> list[tuple[InnerPoint, ...]]:
    """Anchors for some longest stretches, few of them or many that spare work."""
    ratios = {point.output_bytes / point.spared for point in some_points(module) if point.spared}
    worth = [0.0, *(ratio * _AT_LEAST for ratio in _some(sorted(ratios), _PRICES))]
    lengths = _lengths(module, _HEADS)
    tried = (_fewest(module, each, price) for price in worth for each in lengths)
    return list(dict.fromkeys(tried))


def _lengths(module: LocalModule, count: int) -> list[int]:
    """So many of all lengths of stretches, the longest among them."""
    ends = [0, *(point.saved for point in some_points(module)), module.saved]
    return _some(sorted({b - a for i, a in enumerate(ends) for b in ends[i + 1 :]}), count)


def _some(values: Sequence[_Value], count: int) -> list[_Value]:
    """About so many of the values, the last among them."""
    return list(dict.fromkeys((*values[:: max(1, len(values) // count)], *values[-1:])))


def _fewest(module: LocalModule, longest: int, price: float = 0.0) -> tuple[InnerPoint, ...]:
    """The anchors with the fewest bytes of which no stretch is too long, where that can be.

    Of those with as few, what spares the most work.

    Args:
        module: to be cut.
        longest: bytes that a stretch may save.
        price: bytes that may be taken to spare a unit of work.
    """
    points = some_points(module)
    ends = [0, *(point.saved for point in points), module.saved]
    longest = max(longest, *(end - start for start, end in pairwise(ends)))
    cost, before = [(0.0, 0)], [0]
    for i, end in enumerate(ends[1:], start=1):
        best = min((b for b in range(i) if end - ends[b] <= longest), key=cost.__getitem__)
        before.append(best)
        if i <= len(points):
            point, (size, spared) = points[i - 1], cost[best]
            cost.append((size + point.output_bytes - price * point.spared, spared - point.spared))
    chosen, i = [], before[-1]
    while i > 0:
        chosen.append(points[i - 1])
        i = before[i]
    return tuple(reversed(chosen))
