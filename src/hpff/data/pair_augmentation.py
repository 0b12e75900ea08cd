"""Augmentation of an image and its labels together: scale, crop, flip, colours.

By torchvision's transforms v2, which treat labels as such (``tv_tensors.Mask``). The choice of
scale and crop is ours: a crop is drawn again where one class fills too much of it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpff.errors import UserError
from hpff.torch_support.torchvision_import import torchvision

_TRIES = 10
_GRAY = (124, 116, 104)  # ImageNet's mean, where an image is smaller than its crop


@dataclass(frozen=True)
class PairAugmentation:
    """Training images of one size, as published for Cityscapes (InfoPro's code, and mmseg's).

    An image is scaled, padded at the right and below where it is too small, cropped, flipped every
    other time, and its brightness, contrast, saturation and hue are changed, each every other time.

    Attributes:
        crop: height and width.
        ignore_index: the label of padding.
        scale: the least and the largest factor.
        share: of a crop's pixels that count, the most that one class may have; after ten crops
            that have more, the last is taken.
        flip: whether images are flipped.
        jitter: whether colours are changed.

    Raises:
        UserError: a side below 1.
    """

    crop: tuple[int, int]
    ignore_index: int
    scale: tuple[float, float] = (0.5, 2.0)
    share: float = 0.75
    flip: bool = True
    jitter: bool = True

    def __post_init__(self) -> None:
        if min(self.crop) < 1:
            raise UserError(f"crop_size is {list(self.crop)}; expected two sides of at least 1")

    def train(self, image: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Return the part of a pair that the seed decides.

        Args:
            image: uint8 (3, H, W).
            labels: uint8 (H, W).
            seed: decides everything.

        Returns:
            uint8 (3, *crop) and uint8 (*crop).
        """
        kinds = torchvision("tv_tensors")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            changed, map_ = _transforms(self)(kinds.Image(image), kinds.Mask(labels))
        return changed.as_subclass(Tensor), map_.as_subclass(Tensor)

    def middle(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the middle of a pair, padded where it is too small; nothing is left to chance."""
        v2, kinds = torchvision("transforms.v2"), torchvision("tv_tensors")
        padding = _padding(image.shape[1], image.shape[2], self.crop)
        pad = v2.Pad(padding, fill={kinds.Image: _GRAY, kinds.Mask: self.ignore_index})
        found, map_ = v2.CenterCrop(self.crop)(*pad(kinds.Image(image), kinds.Mask(labels)))
        return found.as_subclass(Tensor), map_.as_subclass(Tensor)


@functools.lru_cache(maxsize=32)
def _transforms(settings: PairAugmentation) -> Any:
    v2 = torchvision("transforms.v2")
    steps = [_scale_and_crop()(settings)]
    if settings.flip:
        steps.append(v2.RandomHorizontalFlip())
    if settings.jitter:
        changes: list[dict[str, Any]] = [
            {"brightness": 0.125},
            {"contrast": 0.5},
            {"saturation": 0.5},
            {"hue": 0.05},
        ]
        steps += [v2.RandomApply([v2.ColorJitter(**change)], p=0.5) for change in changes]
    return v2.Compose(steps)


@functools.lru_cache(maxsize=1)
def _scale_and_crop() -> Any:
    """The class of scaled crops, made when torchvision can be imported.

    Not torchvision's ScaleJitter and RandomCrop: the first takes its size as width and height and
    scales to one size, not by a factor; the second pads an image that is too small on all sides by
    all that is missing, so that most of a crop may show nothing (seen in 0.28).
    """
    v2, kinds = torchvision("transforms.v2"), torchvision("tv_tensors")

    class ScaleAndCrop(v2.Transform):  # type: ignore[misc, name-defined]
        """A crop of a scaled pair in which no class has more than a share of what counts."""

        def __init__(self, settings: PairAugmentation) -> None:
            super().__init__()
            self._settings = settings

        def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
            (labels,) = (given for given in flat_inputs if isinstance(given, kinds.Mask))
            scale = torch.empty(()).uniform_(*self._settings.scale).item()
            for _ in range(_TRIES):
                params = self._draw(scale, *labels.shape)
                if not self._is_filled(self.transform(labels, params)):
                    break
            return params

        def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
            fill = self._settings.ignore_index if isinstance(inpt, kinds.Mask) else _GRAY
            part = v2.functional.resized_crop(inpt, *params["region"], params["sides"])
            return v2.functional.pad(part, params["padding"], fill=fill)

        def _draw(self, scale: float, height: int, width: int) -> dict[str, Any]:
            """A region of the image, and the sides that it is scaled to: no more is scaled."""
            crop = self._settings.crop
            whole = [max(1, round(side * scale)) for side in (height, width)]
            sides = [min(side, wanted) for side, wanted in zip(whole, crop, strict=True)]
            region = [
                min(side, max(1, round(part * side / scaled)))
                for side, part, scaled in zip((height, width), sides, whole, strict=True)
            ]
            place = [
                int(torch.randint(side - part + 1, ()))
                for side, part in zip((height, width), region, strict=True)
            ]
            padding = _padding(sides[0], sides[1], crop)
            return {"region": [*place, *region], "sides": sides, "padding": padding}

        def _is_filled(self, labels: Tensor) -> bool:
            counted = labels[labels != self._settings.ignore_index]
            counts = torch.bincount(counted.flatten().long())
            return not len(counts) or bool(counts.max() >= self._settings.share * counts.sum())

    return ScaleAndCrop


def _padding(height: int, width: int, crop: tuple[int, int]) -> list[int]:
    """What is missing at the right and below: left, top, right, bottom."""
    return [0, 0, max(0, crop[1] - width), max(0, crop[0] - height)]
