"""Work in the types that were chosen before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def backward_types(device_type: str) -> Iterator[None]:
    """For a backward: it runs in the types that its forward chose.

    Autocast's cache holds each weight's cast until the whole step is over. The graph holds those
    that this backward needs, and lets go of them as it passes.
    """
    torch.clear_autocast_cache()
    with autocast_off(device_type):
        yield


@contextmanager
def autocast_off(*device_types: str) -> Iterator[None]:
    """Autocast is off inside; on the CPU and on CUDA where no types of device are named."""
    with ExitStack() as stack:
        for kind in device_types or ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The precision of a recipe: bf16 where it pays, or fp32 throughout."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
