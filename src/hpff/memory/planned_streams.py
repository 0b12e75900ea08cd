"""Streams in a plan: where work would be launched, and so whose memory it would take."""

from __future__ import annotations

import torch
from torch import Tensor

from hpff.engine.streams import SeveralStreams, Streams
from hpff.memory.ledger import Ledger


def planned_streams(ledger: Ledger, _: torch.device, number: int) -> Streams:
    """So many streams, which a ledger is told of."""
    return Streams() if number == 1 else SeveralStreams(number, PlannedStreams(ledger))


class PlannedStreams:
    """Streams that are only planned: a ledger is told where work would be launched.

    What :class:`~hpff.engine.streams.SeveralStreams` is made of.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def current(self) -> int:
        return self._ledger.stream

    def switch(self, stream: int) -> None:
        self._ledger.stream = stream

    def create(self, number: int, beside: int) -> list[int]:
        return list(range(1, number + 1))

    def mark(self, stream: int) -> None:
        """Nothing is waited for."""

    def wait(self, stream: int, mark: None) -> None:
        """Nothing is waited for."""

    def holds(self, tensor: Tensor) -> bool:
        return True

    def leave(self) -> None:
        """Nothing else was changed."""
