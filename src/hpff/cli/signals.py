"""The wish to end a command: it comes at any moment, and gets through."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SOON = 0.01  # seconds


@contextmanager
def terminable() -> Iterator[list[int]]:
    """Within, SIGTERM ends the command as Ctrl-C does; the list then holds the signal's number.

    A second one ends the process at once. Processes that were forked from this one die of it as
    they would without us. What comes while a destructor runs, where Python drops every error, is
    sent once more.
    """
    received: list[int] = []
    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != owner:
            os.kill(os.getpid(), number)
            return
        received.append(number)
        raise KeyboardInterrupt

    def dropped() -> int:
        if not received:
            return signal.SIGINT
        received.clear()
        signal.signal(signal.SIGTERM, end)
        return signal.SIGTERM

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # Only the main thread may.
        yield received
        return
    try:
        with _sent_again(dropped):
            yield received
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


@contextmanager
def _sent_again(dropped: Callable[[], int]) -> Iterator[None]:
    """Within, the signal behind an interrupt that Python dropped, by its number, comes again."""
    over = threading.Event()
    main, owner = threading.get_ident(), os.getpid()
    before = sys.unraisablehook

    def send(number: int) -> None:
        if over.wait(_SOON):
            return
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(main, number)  # Wakes the thread if it waits.
        else:
            signal.raise_signal(number)

    def heard(unraisable: Any) -> None:
        ours = os.getpid() == owner and threading.get_ident() == main
        if ours and issubclass(unraisable.exc_type, KeyboardInterrupt):
            _thread.start_new_thread(send, (dropped(),))
        else:
            before(unraisable)

    sys.unraisablehook = heard
    try:
        yield
    finally:
        over.set()
        sys.unraisablehook = before
