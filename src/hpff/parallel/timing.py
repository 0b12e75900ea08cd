"""How long each module takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hpff.cutting.trace import restored_state
from hpff.learner import LocalLearner
from hpff.parallel.metering import metered


def module_seconds(
    learner: LocalLearner,
    inputs: Any,
    targets: Tensor,
    *,
    steps: int = 3,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
) -> list[float]:
    """The least seconds of each module in some steps, its local losses and cascades included.

    The learner is as it was afterwards, but for gradients, which are dropped.

    Args:
        learner: the whole.
        inputs: a batch.
        targets: of it.
        steps: the first warms up and does not count.
        optimizer: makes that of a module's parameters; its step, on copies, is a part of the time.
    """
    device, modules = learner.partition[0].device, range(1, len(learner.partition) + 1)

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    step = None if optimizer is None else _steps_of_copies(learner, optimizer)
    taken = []
    with restored_state(learner):
        for _ in range(1 + steps):
            with metered(learner, now) as meter:
                learner.backward(inputs, targets, on_module_done=step)
            learner.zero_grad(set_to_none=True)
            taken.append([sum(x for (_, i), x in meter.amounts.items() if i == j) for j in modules])
    return [min(each) for each in zip(*taken[1:], strict=True)]


def _steps_of_copies(
    learner: LocalLearner, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
) -> Callable[[int], None]:
    """What steps copies of a module's parameters when it is done, and frees its gradients."""
    pairs = {
        j: [(p, nn.Parameter(p.detach().clone(), p.requires_grad)) for p in own]
        for j, own in enumerate(learner.module_parameters, start=1)
    }
    optimizers = {j: make([copy for _, copy in own]) for j, own in pairs.items() if own}

    def step(j: int) -> None:
        for parameter, copy in pairs[j]:
            copy.grad, parameter.grad = parameter.grad, None
        if j in optimizers:
            optimizers[j].step()
            optimizers[j].zero_grad()

    return step
