"""Rows of ranks that share modules out, and columns of ranks that own the same modules."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hpff.errors import UserError


def grid_groups(columns: int, rows: int, timeout: float) -> tuple[Any, Any]:
    """This rank's row and its column, of all ranks; those of a row have numbers that follow.

    Args:
        columns: ranks in a row.
        rows: ranks in a column.
        timeout: seconds that ranks wait for each other at most.
    """
    ranks = torch.arange(rows * columns).view(rows, columns)
    limit = timedelta(seconds=timeout)
    row, _ = dist.new_subgroups_by_enumeration(ranks.tolist(), timeout=limit)
    column, _ = dist.new_subgroups_by_enumeration(ranks.T.tolist(), timeout=limit)
    return row, column


def rows_of(group: Any, replicas: Any) -> list[list[int]]:
    """The ranks of every row, in order; every process must call it.

    Args:
        group: of this process's row.
        replicas: of its column; None: it is alone in it.

    Raises:
        UserError: they are no grid; on every rank.
    """
    row = dist.get_process_group_ranks(group)
    column = [dist.get_rank()] if replicas is None else dist.get_process_group_ranks(replicas)
    rows, columns = _gathered(row), _gathered(column)
    if not is_grid(rows, columns):
        raise UserError(
            "group and replicas are no grid: groups must share out all ranks, be of one size, and "
            "have their replicas at the same place; take both from one mesh, such as "
            'init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "modules"))'
        )
    return sorted([*each] for each in {tuple(each) for each in rows})


def is_grid(rows: Sequence[Sequence[int]], columns: Sequence[Sequence[int]]) -> bool:
    """Whether every rank's row and column are those of a grid."""
    for rank, (row, column) in enumerate(zip(rows, columns, strict=True)):
        if rank not in row or rank not in column or len(row) != len(rows[0]):
            return False
        if any(rows[other] != row for other in row) or len(column) != len(columns[0]):
            return False
        place = row.index(rank)
        if any(columns[o] != column or rows[o].index(o) != place for o in column):
            return False
    return True


def _gathered(ranks: Sequence[int]) -> list[list[int]]:
    """Every process's list of ranks."""
    world = dist.get_world_size()
    own = torch.full((world,), -1)
    own[: len(ranks)] = torch.tensor(ranks)
    everyone = [torch.empty_like(own) for _ in range(world)]
    dist.all_gather(everyone, own)
    return [[rank for rank in each.tolist() if rank >= 0] for each in everyone]
