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
def broken_if_unreadable(what: str) -> Iterator[None]:
    """Inside, an OSError is a BrokenImageError: ``what`` cannot be read."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise BrokenImageError(f"{what} cannot be read ({reason})") from error


@contextmanager
def opened(encoded: bytes) -> Iterator[Any]:
    """Open an image without decoding it.

    Args:
        encoded: a file of one of the common formats.

    Yields:
        The PIL image. What goes wrong inside is a BrokenImageError, too.

    Raises:
        BrokenImageError: the bytes are no image, or its pixels have more than 8 bits.
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
    """Decode an image.

    Args:
        encoded: as `opened` takes it.
        shape: the (H, W, C) that is wanted; None: any.

    Returns:
        Its pixels (H, W, C), with C = 1 for a gray image and 3 for any other. A gray image turns
        into RGB where `shape` has 3 channels.

    Raises:
        BrokenImageError: as `opened` does.
        UserError: the image has another shape. Neither message says which image it is.
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
