"""What a network's next blocks make of the features that auxiliary networks see."""

from __future__ import annotations

import torch
from torch import nn

from hpff.cutting.trace import restored_state

DO_NOT_RUN = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)
"""What blocks raise that cannot run on features alone."""


def output_of(blocks: nn.Module, features: tuple[int, ...]) -> object:
    """What blocks give for features of a shape, the batch left out: they are run to see.

    Raises:
        Exception: one of ``DO_NOT_RUN``.
    """
    own = (*blocks.parameters(), *blocks.buffers())
    like = next((t for t in own if t.is_floating_point()), torch.empty(0))
    seen = torch.zeros(2, *features, dtype=like.dtype, device=like.device)
    with restored_state(blocks), torch.no_grad():
        return blocks(seen)
