"""Pictures of a segmentation: the classes' colours laid over an image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hpff.runs.atomic_files import make_folder, write_atomically

_OPACITY = 0.6
_GAP = 4
_QUALITY = 85


@dataclass(frozen=True)
class Overlay:
    """Draws an image, its labels and a model's answers side by side.

    Attributes:
        palette: a color for each class.
        ignore_index: the label of pixels that count for nothing, which stay as they are.
    """

    palette: Sequence[tuple[int, int, int]]
    ignore_index: int

    def write(self, file: Path, image: Tensor, targets: Tensor, answers: Tensor) -> Path:
        """Write a JPEG.

        Args:
            file: where to.
            image: uint8 (3, H, W).
            targets: class indices (H, W).
            answers: likewise.

        Returns:
            The file.
        """
        parts = [image.permute(1, 2, 0).cpu().numpy()]
        parts += [self._laid_over(parts[0], map_.cpu()) for map_ in (targets, answers)]
        gap = np.full((len(parts[0]), _GAP, 3), 255, dtype=np.uint8)
        row = np.concatenate([parts[0], gap, parts[1], gap, parts[2]], axis=1)
        content = io.BytesIO()
        Image.fromarray(row).save(content, format="JPEG", quality=_QUALITY)
        make_folder(file.parent)
        write_atomically(file, content.getvalue())
        return file

    def _laid_over(self, image: NDArray[np.uint8], classes: Tensor) -> NDArray[np.uint8]:
        counted = (classes != self.ignore_index) & (classes < len(self.palette))
        colors = torch.tensor(self.palette, dtype=torch.float32)[classes.where(counted, 0)].numpy()
        share = _OPACITY * counted.numpy()[:, :, None]
        mixed: NDArray[np.uint8] = np.rint((1 - share) * image + share * colors).astype(np.uint8)
        return mixed
