"""From the encoded bytes of one image to its pixels."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from hpff.errors import UserError

Pixels = NDArray[np.uint8]
Shape = tuple[int, int, int]

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_DEEP_MODES = ("I", "F")
_GRAY_MODES = ("L", "1")


class BrokenImageError(UserError):
    """An image that cannot be had from its bytes; says why, not which one it is."""


@contextmanager
def opened(encoded: bytes) -> Iterator[Any]:
    """Give the PIL image, not yet decoded; what goes wrong inside is a BrokenImageError.

    Bytes that are no image, and pixels of more than 8 bits, are refused.
    """
    if not encoded:
        raise BrokenImageError(
            "the image's bytes are missing (null or empty); expected whole JPEG or PNG bytes"
        )
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            if image.mode.startswith(_DEEP_MODES):
                raise BrokenImageError(
                    f"the image's pixels are of mode {image.mode}; expected 8 bits a channel"
                )
            yield image
    except UserError:
        raise
    except Exception as error:
        raise BrokenImageError(
            f"the image cannot be decoded ({_reason(error)}); expected whole JPEG or PNG bytes"
        ) from error


def decode(encoded: bytes, shape: Shape | None) -> Pixels:
    """Return the image's pixels as (H, W, C), with C = 1 for a gray image and 3 for any other.

    A gray image turns into RGB where shape, the (H, W, C) that is wanted, has 3 channels. Raises
    BrokenImageError as `opened` does, and UserError for another shape than the wanted one; neither
    says which image it is.
    """
    with opened(encoded) as image:
        gray = image.mode in _GRAY_MODES
        channels = 1 if gray and (shape is None or shape[2] == 1) else 3
        found = (image.height, image.width, channels)
        if shape is not None and found != shape:
            raise UserError(
                f"the image is {_text(found)}, but the first one of the training split is "
                f"{_text(shape)}; expected images of one size, or treatment=imagenet, which crops "
                "images of any size"
            )
        return np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(found)


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no image format that is known"
    return " ".join(str(error).split()) or type(error).__name__
