"""The error of a model on a set of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from hpff.data import ImageBatches
from hpff.training.setup import Parts
from hpff.training.team import Alone

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
    precision, team = parts.recipe.precision, parts.team
    return score(parts.learner.model, parts.test, parts.dataset.num_classes, precision, team=team)


@torch.no_grad()
def score(
    model: nn.Module,
    batches: ImageBatches,
    num_classes: int,
    precision: str,
    *,
    team: Alone | None = None,
) -> Score:
    """The score of a model on one pass, in eval mode; its own mode comes back after.

    Answers are among all `num_classes` classes. `precision` is a recipe's, fp32 or bf16. With a
    `team` it is that of its processes, each of which runs what it has of the model or the images.
    """
    training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=batches.device)
    # Such batches come in order and unchanged: the generator has nothing to decide.
    for batch in batches.epoch(torch.Generator()):
        images, targets = batch if team is None else team.share(*batch)
        if not len(targets):
            continue
        with autocast(batches.device, precision):
            logits = model(images) if team is None else team.forward(images)
        if logits is None:
            continue
        logits = logits.float()
        loss = functional.cross_entropy(logits, targets, reduction="sum")
        likeliest = logits.topk(min(TOP, num_classes), dim=1).indices == targets[:, None]
        wrong = len(targets) - torch.stack((likeliest[:, 0].sum(), likeliest.sum()))
        sums += torch.cat((loss[None], wrong, wrong.new_tensor([len(targets)]))).double()
    model.train(training)
    if team is not None:
        sums = team.sum(sums)
    loss_sum, first, among, seen = sums.tolist()
    images_seen = int(seen)
    top5_error = 100 * among / images_seen if num_classes > TOP else None
    return Score(loss_sum / images_seen, 100 * first / images_seen, top5_error, images_seen)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The precision of the recipe: bf16 where it pays, or fp32 throughout."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
