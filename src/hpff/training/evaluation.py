"""The error of a model on a set of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from hpff.data import ImageBatches
from hpff.training.setup import Parts

TOP = 5


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy, and the shares of wrong answers in percent.

    `top5_error` counts an answer as right if it is among the five likeliest; None for fewer than
    six classes.
    """

    loss: float
    error: float
    top5_error: float | None
    images: int


def evaluate(parts: Parts) -> Score:
    """The backbone's score on the run's test images."""
    precision = parts.recipe.precision
    return score(parts.learner.model, parts.test, parts.dataset.num_classes, precision)


@torch.no_grad()
def score(model: nn.Module, batches: ImageBatches, num_classes: int, precision: str) -> Score:
    """The score of a model on one pass, in eval mode; its own mode comes back after.

    Answers are among all `num_classes` classes. `precision` is a recipe's, fp32 or bf16.
    """
    training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=batches.device)
    images_seen = 0
    # Such batches come in order and unchanged: the generator has nothing to decide.
    for images, targets in batches.epoch(torch.Generator()):
        with autocast(batches.device, precision):
            logits = model(images).float()
        loss = functional.cross_entropy(logits, targets, reduction="sum")
        likeliest = logits.topk(min(TOP, num_classes), dim=1).indices == targets[:, None]
        wrong = len(targets) - torch.stack((likeliest[:, 0].sum(), likeliest.sum()))
        sums += torch.cat((loss[None], wrong)).double()
        images_seen += len(targets)
    model.train(training)
    loss_sum, first, among = sums.tolist()
    top5_error = 100 * among / images_seen if num_classes > TOP else None
    return Score(loss_sum / images_seen, 100 * first / images_seen, top5_error, images_seen)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The precision of the recipe: bf16 where it pays, or fp32 throughout."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
