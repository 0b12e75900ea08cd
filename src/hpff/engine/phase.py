"""What a training step is doing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from hpff.engine.local_loss import LocalLoss, Work
from hpff.engine.streams import Streams, streams_on


@dataclass
class Phase:
    """What a step is doing at the moment, for those who watch it.

    Attributes:
        recomputing: whether it is making again what was not kept.
        doing: "forward" (of the module), "auxiliary" (the auxiliary networks at its output, or the
            final loss), "carry" (its input gradient alone), "complete" (its weight gradients), or
            "" outside a step.
        module: j, from 1; 0 outside a step.
        instead: called in place of the work that takes a local loss's gradients, and gives the one
            at the module's output; it may do the work, or what comes to the same.
        streams_on: gives the streams that a step launches its work on, so many on a device.
    """

    doing: Literal["", "forward", "auxiliary", "carry", "complete"] = ""
    module: int = 0
    recomputing: bool = False
    instead: Callable[[LocalLoss, Work], Tensor] | None = field(
        default=None, repr=False, compare=False
    )
    streams_on: Callable[[torch.device, int], Streams] = field(
        default=streams_on, repr=False, compare=False
    )

    def set(self, doing: Literal["", "forward", "auxiliary", "carry", "complete"], j: int) -> None:
        self.doing, self.module = doing, j

    @contextmanager
    def in_recomputation(self) -> Iterator[None]:
        """Inside, it is recomputing."""
        outer, self.recomputing = self.recomputing, True
        yield
        self.recomputing = outer
