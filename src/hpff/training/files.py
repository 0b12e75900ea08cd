"""Files that are either whole or untouched."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from hpff.errors import UserError


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


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files that a killed process left in `folder`."""
    for leftover in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            leftover.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
