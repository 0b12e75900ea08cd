"""The score of a segmentation: intersection over union, from a confusion matrix of all pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class PixelScores:
    """What a confusion matrix says. All in percent; None where a class occurs nowhere.

    Attributes:
        class_iou: |answer and truth| / |answer or truth| of each class.
        class_accuracy: the share of a class's pixels that were answered right.
        miou: the mean of ``class_iou`` over the classes that occur, in truth or in answers.
        error: the share of wrong pixels among those that count.
    """

    class_iou: tuple[float | None, ...]
    class_accuracy: tuple[float | None, ...]
    miou: float
    error: float


class Confusion:
    """Adds up answers, image by image: truth by answer, by scikit-learn's ``confusion_matrix``.

    Args:
        num_classes: how many classes there are.
        ignore_index: the label of pixels that do not count.
    """

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        self.counts: Counts = np.zeros((num_classes, num_classes), dtype=np.int64)
        self._ignore_index = ignore_index

    def add(self, answers: Tensor, targets: Tensor) -> None:
        """Take in class indices (B, H, W) and their targets."""
        from sklearn.metrics import confusion_matrix  # slow to import

        counted = targets != self._ignore_index
        if not bool(counted.any()):
            return
        truth, found = targets[counted].cpu().numpy(), answers[counted].cpu().numpy()
        self.counts += confusion_matrix(truth, found, labels=np.arange(len(self.counts)))

    def scores(self) -> PixelScores:
        """The scores of all that was added."""
        right, truth = np.diag(self.counts), self.counts.sum(1)
        union = truth + self.counts.sum(0) - right
        iou = [_percent(a, b) for a, b in zip(right, union, strict=True)]
        known = [value for value in iou if value is not None]
        return PixelScores(
            class_iou=tuple(iou),
            class_accuracy=tuple(_percent(a, b) for a, b in zip(right, truth, strict=True)),
            miou=sum(known) / len(known) if known else 0.0,
            error=100 - (_percent(right.sum(), truth.sum()) or 0.0),
        )


def _percent(part: np.int64, whole: np.int64) -> float | None:
    return 100 * float(part) / float(whole) if whole else None
