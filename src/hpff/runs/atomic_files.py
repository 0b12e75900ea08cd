"""Files that are either whole or untouched."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hpff.errors import UserError

_SCRATCH = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp")
_LOCK = "lock"
_LONGEST_NAME = 200  # In bytes; file systems end at 255.


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Replace `path` by `content`.

    The content goes to a temporary file beside it, reaches the disk, and takes the name at once.

    Raises:
        UserError: it cannot be written (a full disk, ...); the file is as it was.
    """
    try:
        with scratch_beside(path) as scratch:
            temporary = scratch / path.name
            write_through(temporary, content)
            temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"{path}: cannot write this file ({error.strerror or error}); the one there before, if "
            "any, is untouched; make room or choose another folder"
        ) from error


def write_through(path: Path, content: bytes | memoryview) -> None:
    """Write a new file, down to the disk.

    Raises:
        OSError: it cannot be written, or there is one already.
    """
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def make_folder(path: Path) -> None:
    """Make the folder, and those above it, where they are not there.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot make this folder ({error.strerror or error}); move away what is in "
            "its place, or choose another folder"
        ) from error


@contextmanager
def scratch_beside(target: Path) -> Iterator[Path]:
    """A folder for what is to take the name `target`, beside it and open to this user alone.

    It has a random name and is always new, so that nothing planted there is followed, and it is
    gone afterwards. As long as it is in use a lock in it is held, which the operating system lets
    go of even after kill -9: what dead processes left beside the target is deleted first. Raises
    OSError where it cannot be made.
    """
    remove_leftovers(target.parent)
    scratch, lock = _new_scratch(target)
    try:
        yield scratch
    finally:
        lock.release()
        shutil.rmtree(scratch, ignore_errors=True)


def is_leftover(entry: Path) -> bool:
    """Whether `entry` is a folder of `scratch_beside`, with nothing in it but what we put there."""
    match = _SCRATCH.fullmatch(entry.name)
    if match is None or entry.is_symlink() or not entry.is_dir():
        return False
    names = {below.name for below in entry.iterdir()} - {_LOCK}
    return all(_shortened(name) == match[1] for name in names)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left in `folder`; what live ones work in stays."""
    with contextlib.suppress(OSError):
        for entry in list(folder.iterdir()):
            with contextlib.suppress(OSError, Timeout):
                if is_leftover(entry):
                    with FileLock(entry / _LOCK, blocking=False):
                        shutil.rmtree(entry, ignore_errors=True)
                    shutil.rmtree(entry, ignore_errors=True)  # Windows deletes no open file.


def _new_scratch(target: Path) -> tuple[Path, FileLock]:
    for _ in range(20):
        scratch = target.with_name(f".{_shortened(target.name)}.{secrets.token_hex(8)}.tmp")
        scratch.mkdir(mode=0o700)
        lock = FileLock(scratch / _LOCK)
        try:
            lock.acquire(blocking=False)
        except (Timeout, FileNotFoundError):  # Another process took it for a dead one's.
            continue
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        return scratch, lock
    raise OSError(errno.EBUSY, "other processes delete what is being written", str(target))


def _shortened(name: str) -> str:
    """The name, or one in its place that leaves room for more in a file's name."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= _LONGEST_NAME else hashlib.sha256(encoded).hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
