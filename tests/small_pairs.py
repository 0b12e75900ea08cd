"""Small folders of images and label maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

VOID = 255


def write_pair(image: Path, labels: Path, seed: int, *, sides: tuple[int, int] = (48, 64)) -> None:
    """A picture in which class 1 is a bright square on class 0, class 2 a dark one; some void."""
    random = np.random.default_rng(seed)
    height, width = sides
    pixels = random.integers(90, 130, (height, width, 3)).astype(np.uint8)
    classes = np.zeros(sides, dtype=np.uint8)
    for number, light in ((1, 240), (2, 10)):
        top, left = random.integers(0, height // 2), random.integers(0, width // 2)
        place = slice(top, top + height // 2), slice(left, left + width // 2)
        pixels[place], classes[place] = light, number
    classes[:2] = VOID
    for file, content in ((image, pixels), (labels, classes)):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(content).save(file)


def write_folder(folder: Path, *, train: int = 8, test: int = 3) -> Path:
    """The layout that CamVid comes in."""
    for split, count in (("train", train), ("test", test)):
        for index in range(count):
            write_pair(
                folder / split / f"{index}.png",
                folder / f"{split}annot" / f"{index}.png",
                seed=index + 100 * (split == "test"),
            )
    return folder
