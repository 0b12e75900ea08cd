"""How long each module takes."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from hpff.cutting.trace import restored_state
from hpff.learner import LocalLearner
from hpff.parallel.metering import metered


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
    device, modules = learner.partition[0].device, range(1, len(learner.partition) + 1)

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    taken = []
    with restored_state(learner):
        for _ in range(1 + steps):
            with metered(learner, now) as meter:
                learner.backward(inputs, targets)
            learner.zero_grad(set_to_none=True)
            taken.append([sum(x for (_, i), x in meter.amounts.items() if i == j) for j in modules])
    return [min(each) for each in zip(*taken[1:], strict=True)]
