"""What each device does in a pipeline: ours, and those of backprop, to be simulated.

GPipe (Huang et al. 2019) runs all micro-batches forward, then all backward. 1F1B (PipeDream-Flush,
Narayanan et al. 2021) begins a backward as soon as it can, and holds fewer micro-batches. ZB-H1
(Qi et al. 2024) splits a backward: the gradient of the input, for which the device before waits,
comes first, and that of the weights where the device would idle, with no more micro-batches alive.
In all three a device begins the next step when it is done with this one, as it then steps weights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate

from hpff.engine.reach import Reach
from hpff.parallel.simulation import Key, Link, Work, simulate


@dataclass(frozen=True)
class Cost:
    """Of a local module, or of a stage of backprop: what a whole batch takes there.

    Attributes:
        forward, input_gradient, weight_gradient: seconds.
        auxiliary: seconds of all auxiliary networks at its output, forward and backward.
        saved: bytes that are alive from the forward to the weight gradient.
        output: bytes of its output.
        auxiliary_bytes: bytes while its auxiliary networks run.
        standing: bytes of parameters, gradients and optimizer state.
    """

    forward: float
    input_gradient: float
    weight_gradient: float
    auxiliary: float = 0.0
    saved: float = 0.0
    output: float = 0.0
    auxiliary_bytes: float = 0.0
    standing: float = 0.0

    @property
    def backprop(self) -> float:
        """Seconds of a step of backprop."""
        return self.forward + self.input_gradient + self.weight_gradient

    def of_one(self, micro_batches: int) -> Cost:
        """What one of so many micro-batches takes, where time goes with samples."""
        shares = {f.name: getattr(self, f.name) / micro_batches for f in fields(self)}
        return Cost(**{**shares, "standing": self.standing})


def stages(costs: Sequence[Cost], sizes: Sequence[int]) -> list[Cost]:
    """Adjacent modules taken together to stages of backprop, so many to each."""
    found, ends = [], list(accumulate(sizes))
    for size, end in zip(sizes, ends, strict=True):
        own = costs[end - size : end]
        found.append(
            Cost(
                forward=sum(c.forward for c in own),
                input_gradient=sum(c.input_gradient for c in own),
                weight_gradient=sum(c.weight_gradient for c in own),
                saved=sum(c.saved for c in own),
                output=own[-1].output,
                standing=sum(c.standing for c in own),
            )
        )
    return found


def local_work(costs: Sequence[Cost], reach: Reach) -> list[float]:
    """Seconds of each module in a step of local learning."""
    return [
        cost.forward
        + cost.auxiliary
        + cost.weight_gradient
        + cost.input_gradient * len(reach.crossing(before))
        for before, cost in enumerate(costs)
    ]


Pipeline = Callable[[Sequence[Cost], int, int], list[list[Work]]]


def gpipe(stages: Sequence[Cost], micro_batches: int, steps: int) -> list[list[Work]]:
    """All micro-batches forward, then all backward.

    Args:
        stages: one for each device.
        micro_batches: m, into which a batch is cut.
        steps: how many.

    Returns:
        Of each device its work, in order.
    """
    order = [("F", i) for i in range(micro_batches)] + [("B", i) for i in range(micro_batches)]
    return [
        _works(stages, d, micro_batches, [(t, *each) for t in range(steps) for each in order])
        for d in range(len(stages))
    ]


def one_f_one_b(stages: Sequence[Cost], micro_batches: int, steps: int) -> list[list[Work]]:
    """A backward as soon as it can be; as for ``gpipe``."""
    return _alternating(stages, micro_batches, steps, split=False)


def zero_bubble(stages: Sequence[Cost], micro_batches: int, steps: int) -> list[list[Work]]:
    """ZB-H1: the same with weight gradients later; as for ``gpipe``."""
    return _alternating(stages, micro_batches, steps, split=True)


def _alternating(stages: Sequence[Cost], m: int, steps: int, *, split: bool) -> list[list[Work]]:
    devices = []
    for d in range(len(stages)):
        warm_up = min(m, len(stages) - d)
        order = [("F", i) for i in range(warm_up)]
        for i in range(m):
            order.append(("I" if split else "B", i))
            if split and i >= d:
                order.append(("W", i - d))
            if warm_up + i < m:
                order.append(("F", warm_up + i))
        order += [("W", i) for i in range(max(0, m - d), m) if split]
        steps_order = [(t, *each) for t in range(steps) for each in order]
        devices.append(_works(stages, d, m, steps_order))
    return devices


def _works(
    stages: Sequence[Cost], d: int, m: int, order: Sequence[tuple[int, str, int]]
) -> list[Work]:
    """One device's work: forward F, backward B, or its halves I (input) and W (weights)."""
    cost, last = stages[d], len(stages) - 1
    seconds = {
        "F": cost.forward,
        "B": cost.input_gradient + cost.weight_gradient,
        "I": cost.input_gradient,
        "W": cost.weight_gradient,
    }
    works = []
    for t, what, i in order:
        needs: tuple[Key, ...] = ()
        gives = 0.0
        if what == "F":
            needs = (("F", t, i, d - 1),) if d else ()
            gives = cost.output / m
        elif what in "BI":
            needs = ((what, t, i, d + 1),) if d < last else ()
            gives = stages[d - 1].output / m if d else 0.0
        works.append(
            Work(
                (what, t, i, d),
                seconds[what] / m,
                needs,
                gives,
                takes=cost.saved / m if what == "F" else 0.0,
                frees=cost.saved / m if what in "BW" else 0.0,
            )
        )
    return works


@dataclass(frozen=True)
class Local:
    """Ours: local modules on several devices, whole batches, no flush.

    Attributes:
        costs: of each module.
        sizes: how many modules each device has.
        reach: how far each cascade goes.
    """

    costs: Sequence[Cost]
    sizes: Sequence[int]
    reach: Reach

    def works(self, steps: int) -> list[list[Work]]:
        """Of each device its work of so many steps, in order."""
        ends = accumulate(self.sizes)
        parts = [(end - size + 1, end) for size, end in zip(self.sizes, ends, strict=True)]
        return [list(self._device(*part, steps)) for part in parts]

    def _device(self, first: int, last: int, steps: int) -> Iterator[Work]:
        due, passing = self.reach.crossing(last), self.reach.crossing(first - 1)
        pending: deque[int] = deque()
        for t in range(steps):
            while pending and pending[0] in passing:
                yield from self._carry(t - 1, pending.popleft(), first, last)
            for j in range(first, last + 1):
                while pending and pending[0] <= self.reach.last_use[j - 1]:
                    yield from self._carry(t - 1, pending.popleft(), first, last)
                yield from self._module(t, j, first, last)
            pending = deque(due)
        while pending:
            yield from self._carry(steps - 1, pending.popleft(), first, last)

    def _module(self, t: int, j: int, first: int, last: int) -> Iterator[Work]:
        """A batch's forward through a module, with all local work that its output allows."""
        cost, final = self.costs[j - 1], j == len(self.costs)
        ready: tuple[Key, ...] = (("D", t, j - 1),) if j == first and j > 1 else ()
        yield Work(("F", t, j), cost.forward, ready, takes=cost.saved)
        here = cost.auxiliary_bytes
        yield Work(("A", t, j), cost.auxiliary, takes=here, frees=here)
        if self.reach.lengths[j - 1] > 1:
            yield from self._carry(t, j, first, last)
        if self.reach.last_use[j - 1] == j and not (final and self.reach.lengths[j - 1] > 1):
            yield self._complete(t, j)
        if j == last and not final:  # what rank_steps sends on, it sends after all of this
            yield Work(("D", t, j), 0.0, gives=cost.output)

    def _carry(self, t: int, end: int, first: int, last: int) -> Iterator[Work]:
        """The gradient of a cascade through this device's modules, and back to the one before."""
        begin = end - self.reach.lengths[end - 1] + 1
        needs: tuple[Key, ...] = (("C", t, end, last + 1),) if end > last else ()
        lowest = max(begin, first)
        for j in range(min(end, last), lowest - 1, -1):
            cost = self.costs[j - 1]
            if j > begin:
                gives = self.costs[j - 2].output if j == first else 0.0
                yield Work(("C", t, end, j), cost.input_gradient, needs, gives)
                needs = ()
            if self.reach.last_use[j - 1] == end and (j < end or j == len(self.costs)):
                yield replace(self._complete(t, j), needs=needs)
                needs = ()

    def _complete(self, t: int, j: int) -> Work:
        cost = self.costs[j - 1]
        return Work(("W", t, j), cost.weight_gradient, frees=cost.saved)


def seconds_a_step(build: Callable[[int], list[list[Work]]], link: Link | None = None) -> float:
    """Seconds of a step in the steady state: what each more step takes on the slowest device.

    A pipeline that waits at a step's end has no other: one of its steps is as long.

    Args:
        build: gives the devices' work of so many steps.
        link: between them; None: messages arrive at once.
    """
    most = 0.0
    for spans in simulate(build(_FEW + _MORE + 1), link).devices:
        ends = {span.work.key[1]: span.end for span in spans}  # type: ignore[index]
        most = max(most, ends[_FEW + _MORE - 1] - ends[_FEW - 1])
    return most / _MORE


_FEW, _MORE = 4, 6  # steps until devices that wait for each other do so evenly, and those counted
