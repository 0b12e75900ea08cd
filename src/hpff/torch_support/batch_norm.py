"""Another function in the place of ``torch.batch_norm``, which every BatchNorm calls in the end.

A mode for functions would not do: it is off inside of ``torch.autograd.backward`` (seen in 2.13),
where checkpointed blocks run again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Normalize = Callable[..., Tensor]
"""Takes what ``torch.batch_norm`` takes, by position."""

_original: Normalize = torch.batch_norm
_replacements: dict[int, Normalize] = {}  # by thread
_lock = threading.Lock()


@contextmanager
def batch_norm_as(normalize: Normalize) -> Iterator[None]:
    """Inside, normalization is ``normalize``, in this thread and in the backwards that it runs."""
    thread = threading.get_ident()
    before = _replacements.get(thread)
    with _lock:
        _replacements[thread] = normalize
        _install(_dispatched)
    try:
        yield
    finally:
        with _lock:
            if before is not None:
                _replacements[thread] = before
            else:
                del _replacements[thread]
            if not _replacements:
                _install(_original)


def _install(function: Normalize) -> None:
    vars(torch)["batch_norm"] = function


def _dispatched(*args: Any, **kwargs: Any) -> Tensor:
    return _replacement()(*args, **kwargs)


def _replacement() -> Normalize:
    """Of the current thread; a thread of autograd's own works for the only one that there is."""
    found = _replacements.get(threading.get_ident())
    if found is None and torch._C._current_graph_task_id() != -1 and len(_replacements) == 1:
        found = next(iter(_replacements.values()), None)
    return found or _original


def plain_batch_norm(*args: Any) -> Tensor:
    """``torch.batch_norm`` itself."""
    return _original(*args)
