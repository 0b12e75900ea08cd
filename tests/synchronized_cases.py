"""Small trainings with BatchNorm over a batch that lies on several ranks, and by one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hpff import LocalLearner, models
from hpff.methods import AuxiliaryContext, Method
from hpff.methods.predsim import PredSim
from hpff.parallel import DataParallel
from hpff.parallel.batch_statistics import batch_statistics

CLASSES = 4
SHARES = {1: [12], 2: [7, 5], 3: [5, 3, 4]}
"""Of a batch of 12, by the number of ranks."""


@dataclass(frozen=True)
class Case:
    """One training of a small ResNet; settings are a learner's."""

    settings: dict[str, Any] = field(default_factory=dict)
    steps: int = 2


class PredSimByShares(PredSim):
    """The mean over shares of a batch of what each alone would lose: pairs are within a share."""

    shares: Sequence[int] = (12,)

    def loss(
        self, outputs: Mapping[str, Tensor], targets: Tensor, context: AuxiliaryContext
    ) -> Tensor:
        shares = list(self.shares)
        parts = {name: value.split(shares) for name, value in outputs.items()}
        losses = [
            super(PredSimByShares, self).loss(
                {name: each[i] for name, each in parts.items()}, own, context
            )
            * (len(own) / len(targets))
            for i, own in enumerate(targets.split(shares))
        ]
        return torch.stack(losses).sum()


def method_of(case: Case, shares: Sequence[int] | None) -> Method | str:
    """The case's method; in one process, given the shares, one whose loss is that of shares."""
    name: str = case.settings.get("method", "dgl")
    if name != "predsim" or shares is None:
        return name
    method = PredSimByShares()
    method.shares = shares
    return method


def learner_of(case: Case, shares: Sequence[int] | None = None) -> LocalLearner:
    torch.manual_seed(5)
    model = models.create("resnet20", num_classes=CLASSES, width=4).double()
    settings = {"modules": 4} | case.settings | {"method": method_of(case, shares)}
    example = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    return LocalLearner(model, example=example, num_classes=CLASSES, **settings)


def batches(case: Case) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (
            3 * torch.rand(12, 3, 8, 8, generator=generator, dtype=torch.float64) + step,
            torch.randint(CLASSES, (12,), generator=generator),
        )
        for step in range(case.steps)
    ]


def optimizer_of(learner: LocalLearner) -> torch.optim.Optimizer:
    return torch.optim.SGD(learner.parameters(), lr=0.1, momentum=0.9)


def by_one(case: Case, shares: Sequence[int]) -> dict[str, Tensor]:
    """Weights and statistics after a training in this process."""
    learner = learner_of(case, shares)
    optimizer = optimizer_of(learner)
    for images, targets in batches(case):
        learner.backward(images, targets)
        optimizer.step()
        optimizer.zero_grad()
    return learner.state_dict()


def by_ranks(cases: Sequence[Case]) -> list[dict[str, Tensor]]:
    """The same on this rank of several, each with a share of every batch."""
    return [_by_ranks(case) for case in cases]


def _by_ranks(case: Case) -> dict[str, Tensor]:
    learner = learner_of(case)
    optimizer = optimizer_of(learner)
    parallel = DataParallel(learner, bucket_bytes=2000, batch_norm="synchronized")
    own, scale = share_of(12)
    for images, targets in batches(case):
        learner.backward(
            images[own], targets[own], on_module_done=parallel.module_done, scale=scale
        )
        parallel.finish()
        optimizer.step()
        optimizer.zero_grad()
    parallel.close()
    return learner.state_dict()


def share_of(batch: int) -> tuple[slice, float]:
    """This rank's part of a batch, and the factor that its number of samples has."""
    rank, world = dist.get_rank(), dist.get_world_size()
    sizes = SHARES[world]
    start = sum(sizes[:rank])
    return slice(start, start + sizes[rank]), sizes[rank] * world / batch


NORMS = {
    "1d": (lambda: nn.BatchNorm1d(3), (12, 3)),
    "1d, sequences": (lambda: nn.BatchNorm1d(3, momentum=None), (12, 3, 5)),
    "2d": (lambda: nn.BatchNorm2d(3, eps=1e-2, momentum=0.3), (12, 3, 4, 4)),
    "2d, no scale": (lambda: nn.BatchNorm2d(3, affine=False), (12, 3, 4, 4)),
    "2d, not tracked": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (12, 3, 4, 4)),
}


def norm_and_input(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """A layer after some training of scale and shift, and a batch far from 0."""
    create, shape = NORMS[name]
    torch.manual_seed(0)
    norm = create()
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 2.0)
    return norm.to(torch.float64 if dtype is torch.float64 else torch.float32), (
        torch.randn(shape, dtype=torch.float64)
        * torch.tensor([1.0, 5.0, 0.1]).view(1, 3, *[1] * (len(shape) - 2))
        + 100
    ).to(dtype)


def loss_of(output: Tensor, own: slice = slice(None)) -> Tensor:
    """Of the samples of a share: the batch's is the sum."""
    factors = torch.linspace(-1, 2, 12 * output[0].numel(), dtype=output.dtype)
    return (factors.view(12, *output.shape[1:])[own] * output.sin()).sum()


def norms_by_ranks(names: Sequence[str]) -> list[dict[str, Any]]:
    """Each layer's output, gradients and statistics on this rank."""
    found = []
    for name in names:
        norm, x = norm_and_input(name)
        own, _ = share_of(12)
        x = x[own].requires_grad_()
        for _ in range(2):
            with batch_statistics():
                output = norm(x)
        found.append(passed(norm, x, output, own))
    return found


def norm_by_one(name: str) -> dict[str, Any]:
    norm, x = norm_and_input(name)
    x.requires_grad_()
    for _ in range(2):
        output = norm(x)
    return passed(norm, x, output)


def passed(norm: nn.Module, x: Tensor, output: Tensor, own: slice = slice(None)) -> dict[str, Any]:
    wanted = [x, *norm.parameters()]
    loss = loss_of(output, own)
    torch.autograd.grad(loss, x, retain_graph=True)  # a graph serves several backwards
    gradients = torch.autograd.grad(loss, wanted)
    return {
        "output": output.detach(),
        "input": gradients[0],
        "parameters": list(gradients[1:]),
        "state": dict(norm.state_dict()),
    }


def in_few_bits() -> dict[str, Any]:
    """Under autocast in 16 bits, and channels last: types, layouts, and how far off it is."""
    norm, x = norm_and_input("2d", torch.bfloat16)
    own, _ = share_of(12)
    x = x[own].contiguous(memory_format=torch.channels_last).requires_grad_()
    with batch_statistics(), torch.autocast("cpu", torch.bfloat16):
        output = norm(x)
    output.float().square().sum().backward()
    whole_norm, whole = norm_and_input("2d", torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        expected = whole_norm(whole.contiguous(memory_format=torch.channels_last))[own]
    return {
        "output": str(output.dtype),
        "expected": str(expected.dtype),
        "gradients": [str(t.grad.dtype) for t in (x, norm.weight)],
        "channels last": output.is_contiguous(memory_format=torch.channels_last),
        "off": (output.float() - expected.float()).abs().max().item(),
        "statistics off": (norm.running_mean - whole_norm.running_mean).abs().max().item(),
    }


def traces() -> dict[str, Any]:
    """What is left in a learner that was synchronized, and what it was meanwhile."""
    learner = learner_of(Case())
    before = list(learner.state_dict())
    kinds = [type(module) for module in learner.modules()]
    forward = torch.batch_norm
    parallel = DataParallel(learner, batch_norm="synchronized")
    own, _ = share_of(12)
    images, targets = batches(Case())[0]
    learner.backward(images[own], targets[own], on_module_done=parallel.module_done)
    parallel.finish()
    learner.eval()
    alone = learner(images[: 2 + dist.get_rank()])  # would hang if ranks met here
    learner.train()
    learner(images[:2])  # nor outside of a step
    during = list(learner.state_dict()), [type(module) for module in learner.modules()]
    parallel.close()
    moved = learner.model.bn1.running_mean.clone()
    if dist.get_rank() == 0:
        learner.backward(images[:2], targets[:2])
    return {
        "same": during == (before, kinds) and torch.batch_norm is forward,
        "finite": bool(alone.isfinite().all() and moved.isfinite().all()),
        "own": [name for module in learner.modules() for name in vars(module) if name == "forward"],
    }


def compiled() -> None:
    learner = learner_of(Case())
    learner.compile()
    DataParallel(learner, batch_norm="synchronized")
