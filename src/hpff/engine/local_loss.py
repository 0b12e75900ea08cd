"""The loss of an auxiliary network, for those who watch a step and know what it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn


class LocalLoss(NamedTuple):
    """The loss of an auxiliary network, whose gradients are about to be taken.

    Attributes:
        module: at whose output it is.
        network: the auxiliary network.
        given: what it is given, and what its output is compared with.
        settings: what else decides how it is computed, the module apart.
        losses: where its value is put, detached.
        name: under what.
    """

    module: int
    network: nn.Module
    given: Sequence[Any]
    settings: tuple[Any, ...]
    losses: dict[Any, Tensor]
    name: Any


Work = Callable[[], Tensor]
