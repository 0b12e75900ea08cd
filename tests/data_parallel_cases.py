"""Small trainings, by one process and by ranks that share the data out, that must agree."""

from __future__ import annotations

import torch
import torch.distributed as dist
from parallel_cases import CLASSES, Case, Chain, learner_of, optimizers_of
from torch import Tensor, nn

from hpff import LocalLearner
from hpff.auxiliary.norm import BatchStatisticsNorm
from hpff.methods.predsim import PredSim
from hpff.parallel import DataParallel


class ScaleAlone(BatchStatisticsNorm):
    """Normalizes nothing, so that samples do not depend on each other."""

    def _normalized(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        shape = (-1, *[1] * (x.ndim - 2))
        return x if weight is None else x * weight.view(shape) + bias.view(shape)


def data_case(method: str, k: int) -> tuple[LocalLearner, list[tuple[Tensor, Tensor]]]:
    """In float64, without what depends on who else is in a batch: statistics and dropout."""
    case = Case({"method": method, "cascade": k}, batch=8)
    torch.manual_seed(4)
    learner = learner_of(case, model=Chain(dropout=0.0), dtype=torch.float64)
    for owner in list(learner.modules()):
        for name, child in owner.named_children():
            if isinstance(child, BatchStatisticsNorm):
                child.__class__ = ScaleAlone
            elif isinstance(child, nn.BatchNorm2d):
                setattr(owner, name, nn.GroupNorm(1, len(child.weight)).double())
    generator = torch.Generator().manual_seed(2)
    drawn = [
        (
            torch.rand(8, 3, 8, 8, generator=generator, dtype=torch.float64),
            torch.randint(CLASSES, (8,), generator=generator),
        )
        for _ in range(3)
    ]
    return learner, drawn


def data_by_one(method: str, k: int) -> dict[str, Tensor]:
    learner, drawn = data_case(method, k)
    optimizers = optimizers_of(Case(), dict(enumerate(learner.module_parameters, start=1)))
    for images, targets in drawn:
        learner.backward(images, targets)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
    return learner.state_dict()


def data_by_ranks(
    given: list[tuple[str, int]], accumulated: bool
) -> list[tuple[dict[str, Tensor], int]]:
    """Weights after the same training with shared data, and how many reductions it took."""
    return [_data_by_ranks(method, k, accumulated) for method, k in given]


def _data_by_ranks(method: str, k: int, accumulated: bool) -> tuple[dict[str, Tensor], int]:
    rank, world = dist.get_rank(), dist.get_world_size()
    learner, drawn = data_case(method, k)
    if rank:
        with torch.no_grad():
            for parameter in learner.parameters():
                parameter.add_(1.0)  # rank 0's weights count
    optimizers = optimizers_of(Case(), dict(enumerate(learner.module_parameters, start=1)))
    reduced = []

    def step(j: int) -> None:
        reduced.append(j)
        optimizers[j].step()
        optimizers[j].zero_grad()

    parallel = DataParallel(learner, on_reduced=step, bucket_bytes=2000)
    for images, targets in drawn:
        mine = images[rank::world], targets[rank::world]
        if accumulated:
            half = len(mine[0]) // 2
            learner.backward(mine[0][:half], mine[1][:half], scale=0.5)
            mine = mine[0][half:], mine[1][half:]
        learner.backward(
            *mine, on_module_done=parallel.module_done, scale=0.5 if accumulated else 1.0
        )
        parallel.finish()
    return learner.state_dict(), len(reduced)


def thawed_later() -> dict[str, Tensor]:
    """Weights after steps on other data on each rank, of which the first finds a block frozen."""
    learner = learner_of(Case({"cascade": 2}))
    block = learner.model.blocks[0]
    block.requires_grad_(False)
    parallel = DataParallel(learner)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    for step in range(3):
        torch.manual_seed(10 * dist.get_rank() + step)
        images, targets = torch.rand(6, 3, 8, 8), torch.randint(CLASSES, (6,))
        learner.backward(images, targets, on_module_done=parallel.module_done)
        parallel.finish()
        optimizer.step()
        optimizer.zero_grad()
        block.requires_grad_(True)
    return {name: parameter.detach() for name, parameter in learner.named_parameters()}


def with_a_method_object() -> bool:
    """A method's object lies elsewhere in each rank's memory."""
    kept = [PredSim() for _ in range(1000 * dist.get_rank() + 1)]
    DataParallel(learner_of(Case({"method": kept[-1]})))
    return True


class TwoTypes(Chain):
    """Its first block is in bfloat16, so that a bucket begins with gradients of fewer digits."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.offset = None
        self.blocks[0].bfloat16()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.blocks[0](self.stem(images).bfloat16()).float()
        for block in self.blocks[1:]:
            maps = block(maps)
        return self.head(maps.mean((2, 3)))


def averaged_in_two_types() -> list[str]:
    """Parameters whose mean over ranks with the same batch is not the gradient itself."""
    found = []
    for shared in (False, True):
        torch.manual_seed(0)
        example = torch.rand(2, 3, 8, 8)
        model = TwoTypes()
        learner = LocalLearner(model, modules=6, example=example, num_classes=CLASSES, patches=1)
        parallel = DataParallel(learner) if shared else None
        torch.manual_seed(1)
        images, targets = torch.rand(8, 3, 8, 8), torch.arange(8) % CLASSES
        learner.backward(images, targets, on_module_done=parallel.module_done if parallel else None)
        if parallel:
            parallel.finish()
        found.append({name: p.grad for name, p in learner.named_parameters()})
    alone, mean = found
    return [name for name in alone if not torch.equal(alone[name], mean[name])]
