"""Pictures of pixels as PNG: images, maps over images, matrices."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

_SIDE = 84
# From dark violet to yellow, as viridis; equal steps look equal, also without colors.
_SCALE = (
    (68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141),
    (39, 173, 129), (92, 200, 99), (170, 220, 50), (253, 231, 37),
)  # fmt: skip
_Pixels = NDArray[np.uint8]


def picture(image: Tensor) -> bytes:
    """An image (C, H, W) from 0 to 1, of one or three channels or more."""
    return _png(_rgb(_sized(image)))


def over_image(image: Tensor, values: Tensor) -> bytes:
    """A map (h, w) from 0 to 1 over its image, which shows through in gray."""
    gray = _sized(image).mean(0).clamp(0, 1).cpu().numpy()
    heat = F.interpolate(
        values[None, None].float(), (_SIDE, _SIDE), mode="bilinear", align_corners=False
    )
    colors = colored(heat[0, 0].cpu().numpy()).astype(np.float64)
    mixed = 0.7 * colors + 0.3 * 255 * gray[..., None]
    return _png(mixed.clip(0, 255).astype(np.uint8))


def matrix(values: Sequence[Sequence[float]]) -> bytes:
    """A matrix of values from 0 to 1, one pixel each."""
    return _png(colored(np.asarray(values, dtype=np.float64)))


def scale() -> bytes:
    """The colors from 0 to 1, in one row."""
    return _png(colored(np.linspace(0, 1, 64)[None]))


def colored(values: NDArray[np.float64]) -> _Pixels:
    """Colors (..., 3) of values from 0 to 1."""
    known = np.asarray(_SCALE, dtype=np.float64)
    places = np.clip(np.nan_to_num(values), 0, 1) * (len(known) - 1)
    steps = np.arange(len(known))
    channels = [np.interp(places, steps, known[:, channel]) for channel in range(3)]
    colors: _Pixels = np.stack(channels, -1).round().astype(np.uint8)
    return colors


def _sized(image: Tensor) -> Tensor:
    return F.interpolate(image[None].float(), (_SIDE, _SIDE), mode="nearest")[0]


def _rgb(image: Tensor) -> _Pixels:
    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    bytes_of = (255 * shown.clamp(0, 1)).round().to(torch.uint8)
    pixels: _Pixels = bytes_of.permute(1, 2, 0).cpu().numpy()
    return pixels


def _png(pixels: _Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", optimize=True)
    return file.getvalue()
