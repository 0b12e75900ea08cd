"""The machine a result was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def describe() -> dict[str, str | int]:
    """Processor, cores, threads, GPU (if any), and the versions that matter."""
    machine: dict[str, str | int] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return machine


def _cpu_name() -> str:
    """The processor's name, from Linux where it is Linux."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
