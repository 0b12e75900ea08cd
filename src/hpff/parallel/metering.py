"""What each kind of work at each module takes, in seconds or in arithmetic."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from hpff.cutting.local_modules import Partition
from hpff.engine.phase import Phase
from hpff.engine.reach import Reach
from hpff.learner import LocalLearner
from hpff.parallel.pipelines import Cost

Amounts = Mapping[tuple[str, int], float]


class Meter(Phase):
    """A phase that adds up what passes on a clock while something is done.

    Args:
        now: the clock: seconds, or whatever grows.

    Attributes:
        amounts: by what was done, and at which module (from 1).
    """

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__()
        self._now = now
        self._last = now()
        self.amounts: dict[tuple[str, int], float] = defaultdict(float)

    def set(self, doing: Literal["", "forward", "auxiliary", "carry", "complete"], j: int) -> None:
        now = self._now()
        if self.module:
            self.amounts[self.doing, self.module] += now - self._last
        self._last = now
        super().set(doing, j)


@contextmanager
def metered(learner: LocalLearner, now: Callable[[], float]) -> Iterator[Meter]:
    """Inside, a meter follows what the learner does."""
    phase, meter = learner.phase, Meter(now)
    meter.instead = phase.instead
    learner.phase = meter
    try:
        yield meter
    finally:
        learner.phase = phase


def costs_of(amounts: Amounts, partition: Partition, reach: Reach) -> list[Cost]:
    """The cost of each module by what was metered in a step of one process.

    Args:
        amounts: as a meter's.
        partition: the modules.
        reach: how far cascades went.
    """
    costs = []
    for module in partition:
        j = module.index
        gradients = amounts.get(("carry", j), 0.0) + amounts.get(("complete", j), 0.0)
        # Of the input by each cascade that goes on below, and once of the weights: all alike.
        each = gradients / (1 + len(reach.crossing(j - 1)))
        costs.append(
            Cost(
                forward=amounts.get(("forward", j), 0.0),
                input_gradient=each,
                weight_gradient=each,
                auxiliary=amounts.get(("auxiliary", j), 0.0),
            )
        )
    return costs
