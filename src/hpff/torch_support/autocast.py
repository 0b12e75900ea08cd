"""Work in the types that were chosen before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


def let_go_of_casts() -> None:
    """Empty autocast's cache, which holds each weight's cast until the whole step is over.

    Graphs hold the casts that their backwards need, and let go of them as these pass.
    """
    torch.clear_autocast_cache()


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
