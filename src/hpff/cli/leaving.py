"""How a command that is left by Ctrl-C or SIGTERM goes on: one line."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_ANEW = "; the same command starts anew"
_KEPT = "; the same command goes on: runs that are finished are kept"
_BY_COMMAND = {"list": "", "recipe": "", "reproduce": _KEPT}


class LeftError(Exception):
    """A command was left while its work lay in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder


@contextmanager
def interrupts_first() -> Iterator[None]:
    """Within, an error that an interrupt brought about on its way out is that interrupt.

    One that comes while a lock changes hands leaves it in a state that shows as another error.
    """
    try:
        yield
    except LeftError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, KeyboardInterrupt):
                raise cause from None
            cause = cause.__context__
        raise


@contextmanager
def resumable(folder: Path, begun: Callable[[], bool]) -> Iterator[None]:
    """Within, Ctrl-C raises LeftError if the folder has begun to hold what --resume goes on with.

    Typer makes an exit code of KeyboardInterrupt itself.
    """
    try:
        with interrupts_first():
            yield
    except KeyboardInterrupt:
        if begun():
            raise LeftError(folder) from None
        raise


def advice(words: Sequence[str], left: LeftError | None = None) -> str:
    """What to do after a command was left, to be put behind the word for it.

    Args:
        words: the command's, without ``hpff``.
        left: where its work lies, if it has begun.
    """
    if left is None:
        return _BY_COMMAND.get(words[0] if words else "list", _ANEW)
    named = any(word == "--out" or word.startswith("--out=") for word in words)
    more = [] if named else ["--out", str(left.folder)]
    more += [] if "--resume" in words else ["--resume"]
    return f"; go on with: {shlex.join(['hpff', *words, *more])}"


def is_helper() -> bool:
    """Whether this is one process of a run on several beside the one that speaks."""
    return os.environ.get("RANK", "0") != "0" or "HPFF_STARTED_BY" in os.environ


def is_follower() -> bool:
    """Whether this is such a process on the terminal of the one that speaks."""
    return os.environ.get("RANK", "0") != "0" and "HPFF_STARTED_BY" in os.environ
