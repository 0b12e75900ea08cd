"""Peak memory of a training step, counted under fake tensors: repeatable, and no device needed.

    python benchmarks/memory.py [--deep] [--write]

fp32, batch 1024, 32×32 images; parameters, gradients and SGD's momentum included. --deep adds
ResNet-1202 (a few minutes), --write puts the table into benchmarks/memory.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint_sequential

from hpff import LocalLearner, models
from hpff.memory import planned_peak
from hpff.models import CifarResNet
from hpff.training import machine

HERE = Path(__file__).parent
LOCAL = {
    "DGL": {"cascade": 1, "patches": 1},
    "DGL+HiLo": {"cascade": 2, "patches": 1},
    "DGL+HPFF": {"cascade": 2, "patches": 2},
}
NETWORKS = {"resnet32": 16, "resnet110": 55}
DEEP = {"resnet1202": 601}


def local_peak(network: str, modules: int, **settings: Any) -> int:
    """Bytes of a step of a local learner, or of backprop through one (method="bp")."""

    def build(images: Tensor, targets: Tensor) -> Any:
        learner = LocalLearner(
            models.create(network),
            modules=modules,
            example=images[:2],
            num_classes=10,
            **settings,
        )
        return lambda: learner.backward(images, targets), _sgd(learner)

    return planned_peak(build, image=(3, 32, 32), batch=1024)


def checkpointed(model: CifarResNet, segments: int, images: Tensor) -> Tensor:
    """The model's logits, ``segments`` runs of its blocks recomputed in the backward."""
    blocks = [*model.layer1, *model.layer2, *model.layer3]
    x = model.relu(model.bn1(model.conv1(images)))
    x = checkpoint_sequential(blocks, segments, x, use_reentrant=False)
    logits: Tensor = model.fc(model.avgpool(x).flatten(1))
    return logits


def checkpointed_peak(network: str, segments: int) -> int:
    """Bytes of a backprop step that recomputes ``segments`` runs of blocks."""

    def build(images: Tensor, targets: Tensor) -> Any:
        model = models.create(network)
        assert isinstance(model, CifarResNet)

        def step() -> None:
            F.cross_entropy(checkpointed(model, segments, images), targets).backward()

        return step, _sgd(model)

    return planned_peak(build, image=(3, 32, 32), batch=1024)


def best_segments(network: str) -> int:
    """How many segments take the least memory."""
    blocks = (int(network.removeprefix("resnet")) - 2) // 2
    return min(range(2, min(blocks, 30) + 1), key=lambda s: checkpointed_peak(network, s))


def _sgd(module: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, nesterov=True)


def rows(network: str, modules: int) -> list[tuple[str, int]]:
    """Each method's peak in bytes."""
    best = best_segments(network)
    return [
        ("BP", local_peak(network, modules, method="bp")),
        (f"BP + checkpointing, {best} segments", checkpointed_peak(network, best)),
        *((name, local_peak(network, modules, **settings)) for name, settings in LOCAL.items()),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--deep", action="store_true", help="ResNet-1202 too")
    parser.add_argument("--write", action="store_true", help="write benchmarks/memory.md")
    given = parser.parse_args()
    lines = ["| network | method | peak, GiB | of BP |", "| --- | --- | --- | --- |"]
    for network, modules in NETWORKS.items():
        found = rows(network, modules)
        for name, peak in found:
            share = peak / found[0][1]
            lines.append(
                f"| {network}, K = {modules} | {name} | {peak / 2**30:.2f} | {share:.2f} |"
            )
    if given.deep:
        for network, modules in DEEP.items():
            peak = local_peak(network, modules)
            lines.append(f"| {network}, K = {modules} | DGL+HPFF | {peak / 2**30:.2f} | |")
    table = "\n".join(lines)
    print(table)
    if given.write:
        (HERE / "memory.md").write_text(f"{__doc__}\n{table}\n\n{machine.describe()}\n")


if __name__ == "__main__":
    main()
