"""What a model is to learn: how its outputs and the targets belong together.

In a classification an output has one target. In a dense task it has places, each with a target of
its own: pixels of a map here, and tokens would be another kind. What methods and the schedule need
to know of a task is its criterion, which takes outputs of any resolution, and whether it is dense.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from hpff.errors import UserError, did_you_mean

TaskName = Literal["classification", "segmentation"]
Criterion = Callable[[Tensor, Tensor], Tensor]


def check_task_name(name: object) -> None:
    """Raise UserError for a task that there is none of."""
    if name not in get_args(TaskName):
        known = get_args(TaskName)
        raise UserError(
            f"task is {name!r}; expected {' or '.join(known)}{did_you_mean(str(name), known)}"
        )


def criterion_of(task: TaskName, criterion: Criterion, ignore_index: int) -> Criterion:
    """The criterion of a task, of a model's or an auxiliary network's outputs and the targets.

    Args:
        task: the task.
        criterion: of scores and targets; in a dense task, of scores at the targets' places.
        ignore_index: the target of places that count for nothing, if ``criterion`` is
            ``torch.nn.functional.cross_entropy``; another criterion must know them itself.
    """
    if task == "classification":
        return criterion
    own = None if criterion is F.cross_entropy else criterion
    return PixelCriterion(ignore_index, own)


@dataclass(frozen=True)
class PixelCriterion:
    """A loss of maps of class scores, with a target at each pixel.

    Scores of another resolution than the targets are interpolated to theirs, bilinearly, corners
    not aligned. The default criterion is the cross-entropy, mean over the pixels that count; where
    none counts it is 0, and so is its gradient.

    Args:
        ignore_index: the target of pixels that do not count.
        criterion: another one, of scores (B, classes, H, W) and targets (B, H, W).
    """

    ignore_index: int = -100
    criterion: Criterion | None = None

    def __call__(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            scores: (B, classes, h, w).
            targets: int64 (B, H, W).

        Raises:
            UserError: shapes, types or class indices are others.
        """
        _check_maps(scores, targets)
        scores = at_pixels(scores, (targets.shape[1], targets.shape[2]))
        if self.criterion is not None:
            return self.criterion(scores, targets)
        try:
            total = F.cross_entropy(
                scores, targets, ignore_index=self.ignore_index, reduction="sum"
            )
        except IndexError as error:
            raise UserError(
                f"targets: {error}; expected classes 0 to {scores.shape[1] - 1}, or ignore_index "
                f"({self.ignore_index})"
            ) from error
        return total / (targets != self.ignore_index).sum().clamp(min=1)


def at_pixels(scores: Tensor, sides: tuple[int, int]) -> Tensor:
    """Scores (B, classes, h, w) interpolated to ``sides``, (H, W)."""
    if tuple(scores.shape[2:]) == sides:
        return scores
    return F.interpolate(scores, size=sides, mode="bilinear", align_corners=False)


def wrong_answers(scores: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """How many answers are wrong, and how many there are, as tensors on the scores' device.

    Args:
        scores: (B, classes), or of a segmentation (B, classes, h, w).
        targets: class indices (B,) or (B, H, W).
        ignore_index: the target of pixels that do not count.
    """
    if targets.ndim == 3:
        scores = at_pixels(scores, (targets.shape[1], targets.shape[2]))
    counted = targets != ignore_index
    wrong = (scores.detach().argmax(1) != targets) & counted
    return wrong.sum(), counted.sum()


def _check_maps(scores: Tensor, targets: Tensor) -> None:
    if scores.ndim != 4:
        raise UserError(
            f"segmentation: the scores are {tuple(scores.shape)}; expected (B, classes, H, W)"
        )
    if targets.ndim != 3 or targets.is_floating_point() or len(targets) != len(scores):
        kind = str(targets.dtype).removeprefix("torch.")
        raise UserError(
            f"segmentation: the targets are {kind} of shape {tuple(targets.shape)}; expected class "
            f"indices ({len(scores)}, H, W), int64"
        )
