"""The order of work in HPFF's public code, written for this library's networks, to count it.

For module m it runs f_m on x for the independent loss, then f_{m-1} and again f_m on y, the input
of f_{m-1}, for the cascade's, and one backward of both losses: three graphs at once. Auxiliary
networks are DGL's with k = 2 and n = 2, not the public code's own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hpff import LocalLearner
from hpff.engine.schedule import Level
from hpff.memory import AllocationCounter
from hpff.models import CifarResNet


def public_order_peak(depth: int, batch: int) -> int:
    """Bytes at the worst moment of a step on CIFAR, momentum included, a module for each block."""
    with FakeTensorMode(), AllocationCounter() as counter:
        images, targets = torch.empty(batch, 3, 32, 32), torch.zeros(batch, dtype=torch.int64)
        model = CifarResNet(depth)
        learner = LocalLearner(model, modules=depth // 2, example=images[:2], num_classes=10)
        momentum = [torch.zeros_like(parameter) for parameter in learner.parameters()]
        counter.peak = counter.current
        _step(learner, _modules(model), images, targets)
        del momentum
    return counter.peak


def _modules(model: CifarResNet) -> list[nn.Module]:
    """The stem, a module for each block, and the head, which belongs to the last."""
    stem = nn.Sequential(model.conv1, model.bn1, model.relu)
    blocks = [*model.layer1, *model.layer2, *model.layer3]
    head = nn.Sequential(blocks[-1], model.avgpool, nn.Flatten(), model.fc)
    return [stem, *blocks[:-1], head]


def _step(learner: LocalLearner, modules: list[nn.Module], images: Tensor, targets: Tensor) -> None:
    def loss_at(level: Level, j: int, output: Tensor) -> Tensor:
        if j == len(modules):
            return F.cross_entropy(output, targets)
        networks = learner.auxiliary_networks
        features = networks.features(j, output, None, None)
        return networks.loss(level, j, features, None, targets)

    y = images
    with torch.no_grad():
        x = modules[0](images)
    for j in range(2, len(modules) + 1):
        below, module = modules[j - 2], modules[j - 1]
        alone = module(x)
        lower = below(y)
        upper = module(lower)
        loss = loss_at("independent", j, alone) + loss_at("cascade", j, upper)
        loss.backward()
        x, y = alone.detach(), lower.detach()
        del alone, lower, upper, loss
