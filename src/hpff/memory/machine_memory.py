"""How much memory the machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def machine_memory(device: torch.device) -> int | None:
    """Bytes that all programs on a device have together.

    Args:
        device: a GPU, whose own memory it is; or the CPU, whose memory is the machine's without
            swap, or the part of it that Linux lets this process's control group have.

    Returns:
        The bytes; None where the operating system does not say (Windows).
    """
    if device.type == "cuda":
        total: int = torch.cuda.get_device_properties(device).total_memory
        return total
    try:
        installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    return min([installed, *_group_limits()]) if installed > 0 else None


def _group_limits() -> Iterator[int]:
    """The limits of the process's control groups (of both versions), and of those around them."""
    try:
        lines = _OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, _, group = line.partition(":")
        controllers, found, path = group.partition(":")
        if controllers == "memory":
            yield from _limits(_GROUPS / "memory", path, "memory.limit_in_bytes")
        elif found and not controllers:
            yield from _limits(_GROUPS, path, "memory.max")


def _limits(root: Path, path: str, name: str) -> Iterator[int]:
    inner = PurePosixPath(path.lstrip("/"))
    for folder in (inner, *inner.parents):
        try:
            text = (root / folder / name).read_text(encoding="ascii").strip()
        except (OSError, ValueError):  # In a container the path may be the host's.
            continue
        if text.isdecimal():  # "max" is no limit.
            yield int(text)
