"""States of several ranks, gathered on the first."""

from __future__ import annotations

import io
from typing import Any

import torch
import torch.distributed as dist


def gather_states(own: Any, group: Any = None) -> list[Any] | None:
    """Every rank's state, in order, on the group's first rank; None elsewhere.

    Args:
        own: tensors, numbers and texts in dicts and lists. It travels as in a checkpoint, and
            nothing is executed when it is read.
        group: a process group; None: all ranks.
    """
    if dist.get_rank(group):
        content = _packed(own)
        dist.send(torch.tensor([len(content)]), group=group, group_dst=0)
        dist.send(content, group=group, group_dst=0)
        return None
    states = [own]
    for rank in range(1, dist.get_world_size(group)):
        size = torch.zeros(1, dtype=torch.int64)
        dist.recv(size, group=group, group_src=rank)
        content = torch.empty(int(size), dtype=torch.uint8)
        dist.recv(content, group=group, group_src=rank)
        states.append(torch.load(io.BytesIO(content.numpy().data), weights_only=True))
    return states


def share_from_first(content: Any) -> Any:
    """What rank 0 gives, on every rank; as for ``gather_states``."""
    packed = _packed(content)
    size = torch.tensor([len(packed)])
    dist.broadcast(size, 0)
    if dist.get_rank():
        packed = torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(packed, 0)
    return torch.load(io.BytesIO(packed.numpy().data), weights_only=True)


def _packed(state: Any) -> torch.Tensor:
    archive = io.BytesIO()
    torch.save(state, archive)
    return torch.frombuffer(archive.getbuffer(), dtype=torch.uint8)
