"""Modes of PyTorch's: leave none active, whatever happens; hide from those that are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._C import _len_torch_dispatch_stack
from torch.utils._python_dispatch import (
    _disable_current_modes,
    _get_current_dispatch_mode,
    _pop_mode,
)


@contextmanager
def modes_restored() -> Iterator[None]:
    """Dispatch modes and hooks of saved tensors that are entered inside do not outlive it.

    A ``with`` alone leaves a mode active where Ctrl-C comes between its push and its return.
    """
    depth, hooks = _len_torch_dispatch_stack(), _saved_tensors_hooks()
    try:
        yield
    finally:
        while _len_torch_dispatch_stack() > depth:
            _leave(_get_current_dispatch_mode())
        while _saved_tensors_hooks() not in (hooks, None):
            torch._C._autograd._pop_saved_tensors_default_hooks()


@contextmanager
def dispatch_modes_off() -> Iterator[None]:
    """Inside, no dispatch mode sees what runs."""
    with _disable_current_modes():
        yield


def _leave(mode: Any) -> None:
    depth = _len_torch_dispatch_stack()
    try:
        mode.__exit__(None, None, None)
    except IndexError:  # Ctrl-C came in the middle of its exit.
        if _len_torch_dispatch_stack() == depth:
            _pop_mode()


def _saved_tensors_hooks() -> Any:
    return torch._C._autograd._top_saved_tensors_default_hooks(True)
