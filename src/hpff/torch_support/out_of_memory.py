"""Running out of memory, which PyTorch says in several ways."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hpff.errors import UserError

# A CPU's allocators raise a plain RuntimeError.
_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")


class OutOfMemoryError(UserError):
    """Memory has run out, or would."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory has run out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError | OSError) and any(words in text for words in _WORDS)


@contextmanager
def out_of_memory_as(words: str) -> Iterator[None]:
    """Inside, running out of memory is an OutOfMemoryError with these words."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if isinstance(error, UserError) or not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(words) from error
