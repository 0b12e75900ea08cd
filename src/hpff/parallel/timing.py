"""How long each module takes."""

from __future__ import annotations

import time
from typing import Any, Literal

import torch
from torch import Tensor

from hpff.cutting.trace import restored_state
from hpff.engine.phase import Phase
from hpff.learner import LocalLearner


class _Clock(Phase):
    """Adds up the seconds of each module."""

    def begin(self, modules: int, device: torch.device) -> None:
        self.seconds = [0.0] * modules
        self.device = device
        self.last = self.now()

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def set(self, doing: Literal["", "forward", "auxiliary", "carry", "complete"], j: int) -> None:
        now = self.now()
        if self.module:
            self.seconds[self.module - 1] += now - self.last
        self.last = now
        super().set(doing, j)


def module_seconds(
    learner: LocalLearner, inputs: Any, targets: Tensor, *, steps: int = 3
) -> list[float]:
    """The least seconds of each module in some steps, its local losses and cascades included.

    The learner is as it was afterwards, but for gradients, which are dropped.

    Args:
        learner: the whole.
        inputs: a batch.
        targets: of it.
        steps: the first warms up and does not count.
    """
    phase, clock = learner.phase, _Clock()
    learner.phase = clock
    taken = []
    try:
        with restored_state(learner):
            for _ in range(1 + steps):
                clock.begin(len(learner.partition), learner.partition[0].device)
                learner.backward(inputs, targets)
                learner.zero_grad(set_to_none=True)
                taken.append(clock.seconds)
    finally:
        learner.phase = phase
    return [min(each) for each in zip(*taken[1:], strict=True)]
