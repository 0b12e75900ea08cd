"""The peak memory of a training step, without a device and without allocating it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hpff.memory.counting import AllocationCounter

Step = Callable[[], object]


def planned_peak(
    build: Callable[[Tensor, Tensor], tuple[Step, torch.optim.Optimizer]],
    *,
    image: tuple[int, ...],
    batch: int,
) -> int:
    """Bytes of all tensors at the worst moment of a training step in full swing.

    Images, parameters, gradients and the optimizer's state are included. Everything runs under
    fake tensors, so the answer is exact and the same every time, but scratch space inside
    kernels is not in it.

    Args:
        build: given images (batch, *image) in float32 and targets (batch,), makes a model in
            memory that does not exist, and returns a function that fills its gradients, and its
            optimizer. Everything it makes must be made inside.
        image: the shape of one image.
    """
    with FakeTensorMode(), AllocationCounter() as counter:
        images = torch.empty(batch, *image)
        targets = torch.zeros(batch, dtype=torch.int64)
        fill_gradients, optimizer = build(images, targets)
        for _ in range(2):  # the optimizer's state exists from the second step on
            counter.peak = counter.current
            optimizer.zero_grad()
            fill_gradients()
            optimizer.step()
    return int(counter.peak)
