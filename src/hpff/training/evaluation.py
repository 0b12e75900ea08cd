"""The error of a model on a set of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from hpff.training.parts import Parts


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy, and the share of wrong answers in percent."""

    loss: float
    error: float


@torch.no_grad()
def evaluate(parts: Parts) -> Score:
    """The backbone's score on the test images, in eval mode; training mode comes back after."""
    model = parts.learner.model
    training = model.training
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=parts.device)
    count = 0
    # Test batches come in order and unchanged: the generator has nothing to decide.
    for images, targets in parts.test.epoch(torch.Generator()):
        with autocast(parts):
            logits = model(images)
        loss = functional.cross_entropy(logits.float(), targets, reduction="sum")
        wrong = (logits.argmax(1) != targets).sum()
        sums += torch.stack((loss.double(), wrong.double()))
        count += len(targets)
    model.train(training)
    loss_sum, wrong_sum = sums.tolist()
    return Score(loss_sum / count, 100 * wrong_sum / count)


def autocast(parts: Parts) -> torch.autocast:
    """The precision of the recipe: bf16 where it pays, or fp32 throughout."""
    enabled = parts.recipe.precision == "bf16"
    return torch.autocast(parts.device.type, torch.bfloat16, enabled=enabled)
