"""How a segmentation is predicted: at one scale or several, mirrored too, whole or by windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpff.errors import UserError
from hpff.methods import at_pixels
from hpff.torch_support.model_io import logits_of

MULTI_SCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # the published ones for Cityscapes


@dataclass(frozen=True)
class Inference:
    """How scores of pixels come about: the mean of class probabilities over all views of an image.

    Attributes:
        scales: factors of the image's sides.
        flip: whether each is mirrored, left to right, too.
        window: height and width of windows that go over a scaled image by two thirds of their
            sides, their scores averaged where they overlap; None: the whole image.

    Raises:
        UserError: a scale or a side is out of its range.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not self.scales or not all(0.05 <= scale <= 8 for scale in self.scales):
            raise UserError(f"scales are {list(self.scales)}; expected numbers from 0.05 to 8")
        if self.window is not None and min(self.window) < 1:
            raise UserError(f"window is {list(self.window)}; expected two sides of at least 1")

    def __str__(self) -> str:
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        parts = ["single scale" if self.scales == (1.0,) else f"scales {scales}"]
        parts += ["left-right flip"] if self.flip else []
        parts += ["windows of {}x{}".format(*self.window) if self.window else "whole images"]
        return ", ".join(parts)

    def scores(self, model: nn.Module, images: Tensor) -> Tensor:
        """Scores (B, classes, H, W): logits of a single view, mean probabilities of several.

        Args:
            model: in eval mode.
            images: (B, C, H, W).
        """
        sides = (images.shape[2], images.shape[3])
        views = len(self.scales) * (1 + self.flip)
        total: Tensor | None = None
        for view, mirrored in self._views(images):
            logits = at_pixels(self._logits(model, view).float(), sides)
            logits = logits.flip(3) if mirrored else logits
            if views == 1:
                return logits
            share = logits.softmax(1) / views
            total = share if total is None else total.add_(share)
        assert total is not None
        return total

    def _views(self, images: Tensor) -> Iterator[tuple[Tensor, bool]]:
        height, width = images.shape[2:]
        for scale in self.scales:
            sides = max(1, round(height * scale)), max(1, round(width * scale))
            scaled = at_pixels(images, sides)
            yield scaled, False
            if self.flip:
                yield scaled.flip(3), True

    def _logits(self, model: nn.Module, images: Tensor) -> Tensor:
        if self.window is None:
            return logits_of(model(images))
        height, width = images.shape[2:]
        down, across = self.window
        padded = F.pad(images, (0, max(0, across - width), 0, max(0, down - height)))
        total, count = torch.zeros(()), torch.zeros(1, 1, *padded.shape[2:], device=images.device)
        for top in _starts(padded.shape[2], down):
            for left in _starts(padded.shape[3], across):
                place = (..., slice(top, top + down), slice(left, left + across))
                part = at_pixels(logits_of(model(padded[place])).float(), (down, across))
                if total.ndim == 0:
                    total = part.new_zeros(*part.shape[:2], *padded.shape[2:])
                total[place] += part
                count[place] += 1
        return (total / count)[:, :, :height, :width]


def _starts(side: int, window: int) -> list[int]:
    """Where windows begin: each two thirds of one further, and the last at the end."""
    step = max(1, window * 2 // 3)
    return sorted({*range(0, side - window, step), side - window})
