"""Tensors of all types on their way from one rank to the next."""

from __future__ import annotations

import torch
import torch.distributed as dist
from parallel_cases import Case, learner_of
from torch import Tensor

from hpff.parallel import DataParallel
from hpff.parallel.messages import Inbox, Outbox

TYPES = (
    torch.float32,
    torch.bfloat16,
    torch.int8,
    torch.int16,
    torch.uint16,
    torch.bool,
    torch.complex64,
    torch.complex128,
    torch.float8_e5m2,
)


def tensors() -> list[Tensor]:
    """Of each type three: turned axes, gaps in memory, one number; and what conjugates lazily."""
    found = []
    for dtype in TYPES:
        numbers = torch.arange(12).remainder(5).to(dtype).view(3, 4)
        found += [numbers.T, numbers[:, ::2], numbers[0, 1]]
    turned = torch.complex(torch.ones(2, 3), torch.arange(6.0).view(2, 3)).conj()
    return [*found, turned]


def sent() -> list[Tensor]:
    """What arrives on rank 1 of what rank 0 sends."""
    group = dist.new_group([0, 1], backend="gloo")
    if dist.get_rank() == 0:
        outbox = Outbox(1, group, 0, 30.0)
        for tensor in tensors():
            outbox.send(tensor)
        outbox.close()
        return []
    inbox = Inbox(0, group, torch.device("cpu"), 0, 30.0)
    received = [inbox.get("a tensor").tensor for _ in tensors()]
    inbox.join()
    return received


def shared_buffers() -> list[Tensor]:
    """The buffers of each rank's learner, which the first rank's are to replace."""
    learner = learner_of(Case())
    for number, tensor in enumerate(tensors()):
        value = tensor.clone() if dist.get_rank() == 0 else torch.zeros_like(tensor)
        learner.model.register_buffer(f"extra_{number}", value)
    DataParallel(learner)
    return [getattr(learner.model, f"extra_{number}") for number in range(len(tensors()))]
