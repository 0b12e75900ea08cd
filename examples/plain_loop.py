"""A loop of your own: a small ResNet on digits, each module stepped as soon as it is done.

    python examples/plain_loop.py [--epochs 10] [--bf16]

Where every module has an optimizer of its own, its gradients are used up and freed while earlier
modules still wait for theirs: of all gradients only two modules' are ever there.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from hpff import LocalLearner, data, models


class ModuleSteps:
    """An SGD for each local module; `step(j)` is what `backward` calls when module j is done."""

    def __init__(self, learner: LocalLearner) -> None:
        self._optimizers = [
            torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
            for parameters in learner.module_parameters
        ]

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of every module."""
        for optimizer in self._optimizers:
            optimizer.param_groups[0]["lr"] = rate

    def step(self, module: int) -> None:
        """Step module j, from 1, and free its gradients."""
        self._optimizers[module - 1].step()
        self._optimizers[module - 1].zero_grad()


def train(epochs: int, *, bf16: bool, seed: int = 0) -> tuple[LocalLearner, data.Dataset]:
    """Train on digits; the learner and the data."""
    torch.manual_seed(seed)
    digits = data.load("digits")
    batches = data.Batches(
        digits.train,
        digits,
        batch_size=128,
        device="cpu",
        shuffle=True,
        augment=True,
        drop_last=True,
    )
    generator = torch.Generator().manual_seed(seed)
    example, _ = next(batches.epoch(generator))
    model = models.create("resnet20", num_classes=10, in_channels=1, width=8)
    learner = LocalLearner(model, modules=5, example=example[:2], num_classes=10)
    steps = ModuleSteps(learner)
    for epoch in range(1, epochs + 1):
        learner.train()
        steps.set_rate(0.05 * (1 + math.cos(math.pi * (epoch - 1) / epochs)))
        for images, targets in batches.epoch(generator):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                losses = learner.backward(images, targets, on_module_done=steps.step)
        print(f"epoch {epoch}: loss {losses.final:.3f}, error {100 * error(learner, digits):.1f} %")
    return learner, digits


@torch.no_grad()
def error(learner: LocalLearner, digits: data.Dataset) -> float:
    """The share of wrong answers on the test images."""
    learner.eval()
    batches = data.Batches(
        digits.test,
        digits,
        batch_size=360,
        device="cpu",
        shuffle=False,
        augment=False,
        drop_last=False,
    )
    images, targets = next(batches.epoch(torch.Generator()))
    logits: Tensor = learner(images)
    return float((logits.argmax(1) != targets).float().mean())


def main() -> None:
    """Read the options and train."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    learner, _ = train(options.epochs, bf16=options.bf16)
    print(learner.partition)


if __name__ == "__main__":
    main()
