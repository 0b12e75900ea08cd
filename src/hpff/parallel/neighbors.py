"""How a rank's tensors come from the ranks beside it, and go there."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from hpff.errors import UserError
from hpff.parallel.messages import Inbox, Outbox
from hpff.parallel.roll_call import LostRankError
from hpff.torch_support.random_state import get_random_state, set_random_state


class Neighbors(Protocol):
    """The ranks before and after this one."""

    def receive_output(self) -> Tensor:
        """What this rank's modules begin from; random numbers go on as they did there."""

    def send_output(self, output: Tensor) -> None:
        """Send on what this rank's modules gave."""

    def receive_gradient(self, end: int) -> Tensor:
        """The gradient at this rank's end of the cascade that ends at a later module."""

    def send_gradient(self, end: int, gradient: Tensor) -> None:
        """Send back the gradient of a cascade at this rank's start."""


class Connections:
    """Neighbors that are other processes.

    Args:
        first: this rank's first module, from 1.
        device: where tensors are put.
        timeout: seconds that this rank waits for another before it gives up.
        rows: the ranks that share modules out, one after the other; the same on every rank.
        a_step: how many messages a step has from the rank before, and from the rank after.
        arrived: takes what the rank before sends, by its ``put``; None: a short queue.

    Raises:
        LostRankError: not all ranks meet in time.
    """

    def __init__(
        self,
        first: int,
        device: torch.device,
        timeout: float,
        rows: Sequence[Sequence[int]],
        a_step: tuple[int, int] = (1, 1),
        arrived: Any = None,
    ) -> None:
        self._first = first
        self._device = device
        self.rank = dist.get_rank()
        self._on: Outbox | None = None
        self._back: Outbox | None = None
        self._from_before: Inbox | None = None
        self._from_after: Inbox | None = None
        note = len(get_random_state(device))
        for before, after in (pair for row in rows for pair in itertools.pairwise(row)):
            pair = [before, after]  # two process groups: one for each direction
            onward, backward = (_met(pair, timeout) for _ in "12")
            if self.rank == before:
                self._after = after
                self._on = Outbox(after, onward, note, timeout)
                self._from_after = Inbox(after, backward, device, note, timeout, a_step[1])
            elif self.rank == after:
                self._from_before = Inbox(before, onward, device, note, timeout, a_step[0], arrived)
                self._back = Outbox(before, backward, note, timeout)

    def receive_batch(self, count: int) -> list[Tensor]:
        """So many tensors of a batch, from the rank before."""
        assert self._from_before is not None
        return [self._from_before.get("a batch").tensor for _ in range(count)]

    def send_batch(self, tensors: Sequence[Tensor], number: int = 0) -> None:
        """Send a batch on to the rank after, if there is one, with a number."""
        if self._on:
            for tensor in tensors:
                self._on.send(tensor, number)

    def receive_output(self) -> Tensor:
        assert self._from_before is not None
        message = self._from_before.get(f"the output of module {self._first - 1}")
        set_random_state(message.note, self._device)
        return message.tensor

    def send_output(self, output: Tensor) -> None:
        assert self._on is not None
        self._on.send(output, note=get_random_state(self._device))

    def receive_gradient(self, end: int) -> Tensor:
        assert self._from_after is not None
        message = self._from_after.get(f"the gradient of the cascade that ends at module {end}")
        if message.number != end:
            raise UserError(
                f"rank {self._after} sent the gradient of the cascade at module "
                f"{message.number} where {end} was due; every rank must take the same steps"
            )
        return message.tensor

    def send_gradient(self, end: int, gradient: Tensor) -> None:
        assert self._back is not None
        self._back.send(gradient, end)

    def close(self, *, limited: bool = True) -> None:
        """Nothing comes any more; every rank must call it.

        Args:
            limited: whether the ranks beside this one must do so in time, too.
        """
        for outbox in (self._on, self._back):
            if outbox:
                outbox.close()
        for inbox in (self._from_before, self._from_after):
            if inbox:
                inbox.join(limited=limited)


def _met(pair: list[int], timeout: float) -> Any:
    """A process group of two ranks; all ranks wait until it is there."""
    try:
        return dist.new_group(pair, timeout=timedelta(seconds=timeout), backend="gloo")
    except RuntimeError as error:
        text = next(iter(str(error).splitlines()), type(error).__name__)[:160]
        raise LostRankError(
            f"ranks {pair[0]} and {pair[1]} have not met within {timeout:.0f} s: a rank hangs, "
            f"was stopped or is gone ({text}); see what it printed"
        ) from error
