"""A batch of many tensors, and many cascades over the boundary of two ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpff import LocalLearner
from hpff.parallel import ModuleParallel

INPUTS, MODULES, CASCADE, STEPS = 9, 20, 10, 4


class Joined(nn.Module):
    """A chain behind the sum of many inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(MODULES - 1))
        )
        self.head = nn.Linear(6, 3)

    def forward(self, *inputs: Tensor) -> Tensor:
        scores: Tensor = self.head(self.layers(self.first(sum(inputs[1:], inputs[0]))))
        return scores


def learner() -> LocalLearner:
    torch.manual_seed(0)
    names = ["first", *(f"layers.{index}" for index in range(MODULES - 2))]
    example = tuple(torch.randn(2, 4) for _ in range(INPUTS))
    return LocalLearner(Joined(), modules=names, example=example, num_classes=3, cascade=CASCADE)


def batches() -> list[tuple[tuple[Tensor, ...], Tensor]]:
    torch.manual_seed(1)
    return [
        (tuple(torch.randn(8, 4) for _ in range(INPUTS)), torch.randint(3, (8,)))
        for _ in range(STEPS)
    ]


def by_one() -> dict[str, Tensor]:
    """The learner's state after some steps on one process."""
    made = learner()
    optimizers = [torch.optim.SGD(each, lr=0.1) for each in made.module_parameters]
    for inputs, targets in batches():
        made.backward(inputs, targets)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return made.state_dict()


def by_two() -> dict[str, Tensor] | None:
    """The same on two, on the first of them; the second has no batches."""
    half = MODULES // 2
    ranks = ModuleParallel(learner(), sizes=(half, MODULES - half), timeout=20, batches="sent")
    optimizers = {j: torch.optim.SGD(each, lr=0.1) for j, each in ranks.module_parameters.items()}

    def done(j: int) -> None:
        optimizers[j].step()
        optimizers[j].zero_grad()

    for inputs, targets in batches():
        given = (None, None) if ranks.rank else (inputs, targets)
        ranks.backward(*given, on_module_done=done)
    state = ranks.state_dict()
    ranks.close()
    return state
