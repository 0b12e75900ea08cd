"""Whether all ranks are about to do the same."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.distributed as dist

from hpff.errors import UserError


def check_same(what: str, content: str, group: Any = None) -> None:
    """Compare a text with that of the group's first rank; every rank of it must call it.

    Args:
        what: the text is about, in words.
        content: the text.
        group: a process group; None: all ranks.

    Raises:
        UserError: some rank has another text; on every rank.
    """
    own = torch.frombuffer(bytearray(hashlib.sha256(content.encode()).digest()), dtype=torch.uint8)
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, own, group=group)
    ranks = dist.get_process_group_ranks(group)
    pairs = zip(ranks, everyone, strict=True)
    others = [rank for rank, each in pairs if not torch.equal(each, everyone[0])]
    if others:
        listed = ", ".join(map(str, others))
        raise UserError(
            f"ranks have different {what}: those of rank {listed} are not those of rank "
            f"{ranks[0]}; start every rank with the same command and the same files"
        )
