"""ImageNet's treatment of images of any size: a random part in training, the middle in tests."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from hpff.data.decode import Pixels, opened
from hpff.errors import UserError

_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)
_TRIES = 10
_TEST_RESIZE = 256 / 224
_BILINEAR = Image.Resampling.BILINEAR
_DRAFT = 2.0  # A JPEG is decoded at a lower resolution where that is at least twice what is wanted.

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class ResizedCrop:
    """Crops of `size` by `size` pixels, RGB, as torchvision's reference training makes them.

    Training: a part of 8 to 100 % of the area and of ratio 3/4 to 4/3, resized, and flipped every
    other time. Tests: the shorter side resized to `size` · 256 / 224, and the middle. Bilinear.

    Attributes:
        size: pixels a side, 1 or more.

    Raises:
        UserError: the size is below 1.
    """

    size: int = 224

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"image_size is {self.size}; expected 1 or more pixels")

    def train(self, encoded: bytes, seed: int) -> Pixels:
        """Return the part of the image that the seed decides, (size, size, 3).

        Raises:
            BrokenImageError: as `opened` does.
        """
        chance = random.Random(seed)
        with opened(encoded) as image:
            box = random_box(image.width, image.height, chance)
            box = _draft(image, box, self.size)
            part = _rgb(image).crop(box).resize((self.size,) * 2, Image.Resampling.BILINEAR)
        pixels = np.asarray(part)
        return np.ascontiguousarray(pixels[:, ::-1]) if chance.random() < 0.5 else pixels

    def test(self, encoded: bytes) -> Pixels:
        """Return the middle of the resized image, (size, size, 3).

        Raises:
            BrokenImageError: as `opened` does.
        """
        shorter = max(self.size, int(self.size * _TEST_RESIZE))
        with opened(encoded) as image:
            short = min(image.size)
            width, height = (int(shorter * side / short) for side in image.size)
            whole = _rgb(image).resize((width, height), _BILINEAR)
        left, top = (round((side - self.size) / 2) for side in whole.size)
        return np.asarray(whole.crop((left, top, left + self.size, top + self.size)))


def _rgb(image: Any) -> Any:
    return image if image.mode == "RGB" else image.convert("RGB")  # convert() always copies.


# Not torchvision's RandomResizedCrop.get_params: it draws from torch's global generator, which to
# seed for each image and to restore took 50 times as long as this.
def random_box(width: int, height: int, chance: random.Random) -> Box:
    """Choose a part of an image at random.

    After ten parts that do not fit, it is the middle, with the nearest ratio that is allowed.

    Args:
        width: of the image.
        height: of the image.
        chance: what decides.

    Returns:
        Left, top, right and bottom of the part.
    """
    for _ in range(_TRIES):
        area = width * height * chance.uniform(*_AREA)
        ratio = math.exp(chance.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = chance.randint(0, width - w), chance.randint(0, height - h)
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * _RATIO[1])))
    h = min(height, max(1, round(width / _RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _draft(image: Any, box: Box, size: int) -> Box:
    """Let a JPEG decode at a lower resolution where it is large enough; the box in that image."""
    width, height = image.size
    enough = _DRAFT * size / min(box[2] - box[0], box[3] - box[1])
    if enough >= 1:
        return box
    image.draft("RGB", (math.ceil(width * enough), math.ceil(height * enough)))
    x, y = image.width / width, image.height / height
    left, top = math.floor(box[0] * x), math.floor(box[1] * y)
    return left, top, max(left + 1, round(box[2] * x)), max(top + 1, round(box[3] * y))
