"""What surrounds a command: its streams, which may be closed, and its garbage."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast


@contextmanager
def steady_streams() -> Iterator[None]:
    """Within, no message can end a run: what stderr does not take (a closed pipe) is lost.

    Streams that are closed from the start lead nowhere, so that no file of a run gets their
    numbers; a name that stdout cannot encode is written with escapes.
    """
    _open_closed()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
    with contextlib.redirect_stderr(cast(Any, _Steady(sys.stderr))):
        yield


class _Steady:
    """A stream that goes on without an error when what it leads to is gone."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except (OSError, ValueError):
            lead_nowhere(self._stream)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            lead_nowhere(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def lead_nowhere(stream: Any) -> None:
    """Let what is written to the stream from now on vanish, what is still on its way too."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _open_closed() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # Takes the lowest number that is free.


@contextmanager
def seldom_collecting() -> Iterator[None]:
    """Within, garbage is looked for seldom: imports and traces make little, and much that stays.

    A plan takes a sixth less time.
    """
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
