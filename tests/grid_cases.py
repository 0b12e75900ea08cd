"""Small trainings on a grid of processes: rows share modules out, columns average gradients."""

from __future__ import annotations

import os
from typing import Any

import synchronized_cases as synchronized
import torch
import torch.distributed as dist
from data_parallel_cases import data_case
from parallel_cases import Case, learner_of, optimizers_of
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from hpff import LocalLearner
from hpff.parallel import DataParallel, ModuleParallel

# Method, k, sizes; whether each batch comes as two whose gradients are added up.
Trained = tuple[str, int, tuple[int, ...], bool]


def mesh_of(rows: int) -> Any:
    """Ranks in so many rows."""
    shape = rows, dist.get_world_size() // rows
    return init_device_mesh("cpu", shape, mesh_dim_names=("data", "modules"))


def by_grid(rows: int, trained: list[Trained]) -> list[tuple[Any, list[Tensor], list[int]]]:
    """For each training: the whole state on rank 0, what is here, and what was stepped when."""
    mesh = mesh_of(rows)
    return [_by_grid(mesh, *each) for each in trained]


def _by_grid(
    mesh: Any, method: str, k: int, sizes: tuple[int, ...], accumulated: bool
) -> tuple[Any, list[Tensor], list[int]]:
    learner, drawn = data_case(method, k)
    row, rows = mesh.get_local_rank("data"), mesh.size(0)
    if row:
        _spoil(learner)
    ranks = ModuleParallel(
        learner,
        group=mesh.get_group("modules"),
        replicas=mesh.get_group("data"),
        sizes=sizes,
        timeout=30,
        bucket_bytes=500,
    )
    optimizers = optimizers_of(Case(), ranks.module_parameters)
    stepped: list[int] = []

    def done(j: int) -> None:
        stepped.append(j)
        optimizers[j].step()
        optimizers[j].zero_grad()

    for images, targets in drawn:
        mine = images[row::rows], targets[row::rows]
        if accumulated:
            half = len(mine[0]) // 2
            ranks.backward(mine[0][:half], mine[1][:half], on_module_done=None, scale=0.5)
            mine = mine[0][half:], mine[1][half:]
        ranks.backward(*mine, on_module_done=done, scale=0.5 if accumulated else 1.0)
    state = ranks.state_dict()
    ranks.close()
    return state, ranks.tensors(), stepped


def by_grid_with_batch_norm(trained: list[synchronized.Case]) -> list[tuple[Any, list[Tensor]]]:
    """Trainings in 2 rows that normalize by the whole batch: the state on rank 0, what is here."""
    mesh = mesh_of(2)
    return [_by_grid_with_batch_norm(mesh, case) for case in trained]


def _by_grid_with_batch_norm(mesh: Any, case: synchronized.Case) -> tuple[Any, list[Tensor]]:
    row = mesh.get_local_rank("data")
    ranks = ModuleParallel(
        synchronized.learner_of(case),
        group=mesh.get_group("modules"),
        replicas=mesh.get_group("data"),
        sizes=(2, 2),
        timeout=30,
        bucket_bytes=500,
        batch_norm="synchronized",
    )
    optimizers = optimizers_of(Case(), ranks.module_parameters)

    def done(j: int) -> None:
        optimizers[j].step()
        optimizers[j].zero_grad()

    shares = synchronized.SHARES[2]
    own = slice(row * shares[0], sum(shares[: row + 1]))
    for images, targets in synchronized.batches(case):
        ranks.backward(images[own], targets[own], on_module_done=done, scale=shares[row] / 6)
    state = ranks.state_dict()
    ranks.close()
    return state, ranks.tensors()


def batch_norm_of_one_row() -> None:
    """Every batch is whole, and yet it is to be put together."""
    ModuleParallel(learner_of(Case()), timeout=10, batch_norm="synchronized")


def _spoil(learner: LocalLearner) -> None:
    """The first row's weights count."""
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(1.0)


def with_shared_weights_and_statistics() -> tuple[list[Tensor], list[Tensor]]:
    """What is here after some steps with dropout and BatchNorm, and statistics before sharing."""
    mesh = mesh_of(2)
    case = Case({"cascade": 3}, model="shared", steps=4)
    ranks = ModuleParallel(
        learner_of(case),
        group=mesh.get_group("modules"),
        replicas=mesh.get_group("data"),
        sizes=(4, 2),
        timeout=30,
    )
    optimizers = optimizers_of(case, ranks.module_parameters)

    def done(j: int) -> None:
        optimizers[j].step()
        optimizers[j].zero_grad()

    generator = torch.Generator().manual_seed(mesh.get_local_rank("data"))
    for _ in range(case.steps):
        images = torch.rand(4, 3, 8, 8, generator=generator)
        ranks.backward(images, torch.arange(4), on_module_done=done)
    ranks.finish()
    before = [tensor.clone() for tensor in ranks.tensors()]
    ranks.share_buffers()
    ranks.close()
    return before, ranks.tensors()


def zeros_dropped() -> list[bool]:
    """Which of the stem's first outputs a rank's dropout keeps in a step."""
    mesh = mesh_of(2)
    ranks = ModuleParallel(
        learner_of(Case({"cascade": 1})),
        group=mesh.get_group("modules"),
        replicas=mesh.get_group("data"),
        sizes=(3, 3),
        timeout=30,
    )
    seen: list[Tensor] = []
    first = ranks.first - 1
    dropout = ranks.learner.model.blocks[first].dropout  # type: ignore[index,union-attr]
    dropout.register_forward_hook(lambda _, given, output: seen.append(output[0].flatten() != 0))
    ranks.backward(torch.ones(2, 3, 8, 8), torch.arange(2), on_module_done=lambda _: None)
    ranks.close()
    kept: list[bool] = seen[-1].tolist()
    return kept


def by_data_in_pairs() -> list[Tensor]:
    """A data-parallel step in each of two groups of two: two trainings side by side."""
    rank = dist.get_rank()
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    learner, drawn = data_case("dgl", 2)
    if rank > 1:
        _spoil(learner)
    parallel = DataParallel(learner, group=groups[rank // 2])
    images, targets = drawn[0]
    mine = images[rank % 2 :: 2], targets[rank % 2 :: 2]
    learner.backward(*mine, on_module_done=parallel.module_done)
    parallel.finish()
    return [p.grad for p in learner.parameters() if p.grad is not None]


def no_grid() -> None:
    """Replicas that own other modules."""
    groups = [dist.new_group(pair) for pair in ([0, 1], [2, 3], [0, 3], [1, 2])]
    rank = dist.get_rank()
    row, column = groups[rank // 2], groups[2 if rank in (0, 3) else 3]
    ModuleParallel(learner_of(Case()), group=row, replicas=column, timeout=10)


def different_rows() -> None:
    """The second row's learner is another."""
    mesh = mesh_of(2)
    case = Case({"cascade": 1 + mesh.get_local_rank("data")})
    group, replicas = mesh.get_group("modules"), mesh.get_group("data")
    ModuleParallel(learner_of(case), group=group, replicas=replicas, timeout=10)


def gone() -> None:
    """The last rank ends after a step."""
    mesh = mesh_of(2)
    group, replicas = mesh.get_group("modules"), mesh.get_group("data")
    ranks = ModuleParallel(learner_of(Case()), group=group, replicas=replicas, timeout=10)
    for step in range(5):
        if step == 1 and dist.get_rank() == 3:
            os._exit(1)
        images = torch.rand(4, 3, 8, 8)
        ranks.backward(images, torch.arange(4), on_module_done=lambda _: None)
    ranks.finish()


def order_of_messages() -> list[list[Any]]:
    """For each of two steps what was done and sent in it, and what is sent after."""
    mesh = mesh_of(2)
    events: list[list[Any]] = [[]]
    done, send = DataParallel.module_done, DataParallel.send

    def noted_done(self: DataParallel, j: int) -> None:
        events[-1].append(j)
        done(self, j)

    def noted_send(self: DataParallel) -> None:
        if self._waiting:
            events[-1].append([*self._waiting])
        send(self)

    DataParallel.module_done, DataParallel.send = noted_done, noted_send  # type: ignore[method-assign]
    group, replicas = mesh.get_group("modules"), mesh.get_group("data")
    learner = learner_of(Case({"cascade": 1}))
    ranks = ModuleParallel(learner, group=group, replicas=replicas, sizes=(3, 3), timeout=30)
    for _ in range(2):
        ranks.backward(torch.rand(4, 3, 8, 8), torch.arange(4), on_module_done=lambda _: None)
        events.append([])
    ranks.close()
    return events
