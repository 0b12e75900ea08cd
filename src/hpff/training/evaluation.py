"""The error of a model on a set of images."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpff.data import Dataset, ImageBatches
from hpff.methods import PixelCriterion
from hpff.torch_support.autocast import autocast
from hpff.torch_support.model_io import logits_of
from hpff.training.inference import Inference
from hpff.training.pixel_scores import Confusion, PixelScores
from hpff.training.setup import Parts
from hpff.training.team import Alone

TOP = 5


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy, and the shares of wrong answers in percent.

    `top5_error` counts an answer as right if it is among the five likeliest; None for fewer than
    six classes, and in a segmentation. There the error is the share of wrong pixels, and `pixels`
    has the rest.
    """

    loss: float
    error: float
    top5_error: float | None
    images: int
    pixels: PixelScores | None = None

    @property
    def miou(self) -> float | None:
        """The mean intersection over union of a segmentation, in percent."""
        return None if self.pixels is None else self.pixels.miou


def uncompiled(parts: Parts) -> AbstractContextManager[Any]:
    """What training compiled is run as it is inside.

    For the other mode, and for a smaller last batch, it would be compiled anew.
    """
    return torch.compiler.set_stance("force_eager") if parts.recipe.compile else nullcontext()


def evaluate(parts: Parts) -> Score:
    """The backbone's score on the run's test images; in a segmentation whole, at a single scale."""
    model, precision, team = parts.learner.model, parts.recipe.precision, parts.team
    with uncompiled(parts):
        if parts.dataset.task == "segmentation":
            return pixel_score(model, parts.test, parts.dataset, precision)
        return score(model, parts.test, parts.dataset.num_classes, precision, team=team)


@torch.no_grad()
def score(
    model: nn.Module,
    batches: ImageBatches,
    num_classes: int,
    precision: str,
    *,
    team: Alone | None = None,
    observe: Callable[[], None] = lambda: None,
) -> Score:
    """The score of a model on one pass, in eval mode; its own mode comes back after.

    Answers are among all `num_classes` classes. `precision` is a recipe's, fp32 or bf16. With a
    `team` it is that of its processes, each of which runs what it has of the model or the images.
    `observe` is called after each batch.
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
            output = model(images) if team is None else team.forward(images)
        if output is None:
            continue
        logits = logits_of(output).float()
        loss = functional.cross_entropy(logits, targets, reduction="sum")
        likeliest = logits.topk(min(TOP, num_classes), dim=1).indices == targets[:, None]
        wrong = len(targets) - torch.stack((likeliest[:, 0].sum(), likeliest.sum()))
        sums += torch.cat((loss[None], wrong, wrong.new_tensor([len(targets)]))).double()
        observe()
    model.train(training)
    if team is not None:
        sums = team.sum(sums)
    loss_sum, first, among, seen = sums.tolist()
    images_seen = int(seen)
    top5_error = 100 * among / images_seen if num_classes > TOP else None
    return Score(loss_sum / images_seen, 100 * first / images_seen, top5_error, images_seen)


@torch.no_grad()
def pixel_score(
    model: nn.Module,
    batches: ImageBatches,
    dataset: Dataset,
    precision: str,
    inference: Inference | None = None,
    observe: Callable[[], None] = lambda: None,
) -> Score:
    """The score of a model that segments, on one pass in eval mode; its own mode comes back after.

    Args:
        model: the model.
        batches: of images and labels (B, H, W).
        dataset: whose classes they have.
        precision: a recipe's, fp32 or bf16.
        inference: how images are looked at; by default whole, at a single scale.
        observe: called after each batch.

    Returns:
        The score; its loss is that of the logits, or with several views of their probabilities.
    """
    inference = inference or Inference()
    criterion = PixelCriterion(dataset.ignore_index)
    confusion = Confusion(dataset.num_classes, dataset.ignore_index)
    loss, images_seen = torch.zeros((), dtype=torch.float64, device=batches.device), 0
    training = model.training
    model.eval()
    for images, targets in batches.epoch(torch.Generator()):
        with autocast(batches.device, precision):
            scores = inference.scores(model, images).float()
        confusion.add(scores.argmax(1), targets)
        loss += len(images) * criterion(_logits(scores, inference), targets)
        images_seen += len(images)
        observe()
    model.train(training)
    pixels = confusion.scores()
    return Score(loss.item() / images_seen, pixels.error, None, images_seen, pixels)


def _logits(scores: Tensor, inference: Inference) -> Tensor:
    """Scores as logits: the logarithm of probabilities."""
    several = len(inference.scales) > 1 or inference.flip
    return scores.clamp(min=1e-12).log() if several else scores
