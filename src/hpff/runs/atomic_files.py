"""Files that are either whole or untouched."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from hpff.errors import UserError

_TEMPORARY = re.compile(r"\.(.+)\.[0-9]+\.tmp")


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Replace `path` by `content`, or leave it as it was and raise UserError (a full disk, ...).

    The content goes to a temporary file beside it, reaches the disk, and takes the name at once.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"{path}: cannot write this file ({error.strerror or error}); the one there before, if "
            "any, is untouched; make room or choose another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def make_folder(path: Path) -> None:
    """Make the folder, and those above it, where they are not there; or raise UserError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot make this folder ({error.strerror or error}); move away what is in "
            "its place, or choose another folder"
        ) from error


def is_leftover(entry: Path, names: Iterable[str]) -> bool:
    """Whether `entry` is a temporary file of `write_atomically` for one of the file `names`."""
    match = _TEMPORARY.fullmatch(entry.name)
    return match is not None and match[1] in names and entry.is_file() and not entry.is_symlink()


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Delete the temporary files that a killed process left in `folder` while writing `names`."""
    for entry in list(folder.iterdir()):
        if is_leftover(entry, names):
            with contextlib.suppress(OSError):
                entry.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
