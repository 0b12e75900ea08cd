"""Several modules' work at the same time, on CUDA streams.

On one stream kernels run one after another, and small ones leave most of a GPU idle. But module
j + 1 needs nothing of module j's local work, only its output. So after each local loss the work of
the next modules is put on another stream, and their forward waits for the output alone. The same
kernels run on the same values: results are the same, bit for bit.

PyTorch's allocator hands memory that is let go of to the next work of the stream that it was made
on, which may be ahead of another stream that still reads it. What a stream reads of another's is
therefore kept until the stream that made it has waited for the reader: it is lent. (It does so at
a forward, after which comes all that is launched later, on whatever stream.)
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor

from hpff.engine.reach import Reach
from hpff.errors import UserError


class Streams:
    """All work on the stream that is there: nothing is to be done for it.

    A step tells what it is about to do; module 0 stands for what was there before the step.
    """

    def begin(self, turns: Sequence[int]) -> None:
        """A step begins, in which module j works in the turn ``turns[j]``; see `turns_of`."""

    def end(self) -> None:
        """The step is over, or has failed: what comes next waits for all of it."""

    def ready(self) -> None:
        """What the next module's forward needs has been launched."""

    def forward(self, j: int) -> None:
        """Module j's forward comes next."""

    def follow(self, j: int) -> None:
        """Work of module j comes next, and needs what was launched last."""

    def back_to(self, j: int) -> None:
        """Work of module j comes next, and needs nothing that was launched last."""

    def home(self, tensor: Tensor, source: Tensor | None = None, of_source: Any = None) -> Any:
        """The stream whose memory a tensor has that was just made: from ``source``, perhaps."""
        return None

    def lend(self, tensor: Tensor, home: Any) -> None:
        """What is launched from now on, until another module's turn, reads ``home``'s memory."""

    def check(self, tensor: Tensor) -> None:
        """Raise UserError if a tensor lies on another device."""


def turns_of(reach: Reach, *, independent: bool) -> tuple[int, ...]:
    """For each module, from 0 for what was there before, the turn in which it works.

    A turn ends with a module at whose output there is a loss: before it, nothing could run
    beside the forward of the modules after it.
    """
    losses = [0, *(independent or length > 1 for length in reach.lengths[:-1])]
    return (0, *accumulate(map(int, losses)))


class Machine(Protocol):
    """What streams are made of."""

    def current(self) -> Any:
        """The stream that work is launched on; equal to itself, but another object each time."""

    def switch(self, stream: Any) -> None:
        """Launch what comes next on this stream."""

    def create(self, number: int, beside: Any) -> list[Any]:
        """So many streams, for steps that begin on the stream ``beside``; the same each time."""

    def mark(self, stream: Any) -> Any:
        """The moment when all that was launched on the stream so far is done."""

    def wait(self, stream: Any, mark: Any) -> None:
        """What is launched on the stream from now on begins after that moment."""

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor lies where these streams work."""

    def leave(self) -> None:
        """The step is over: nothing but the current stream may be another than before."""


@dataclass
class _Loan:
    tensor: Tensor
    home: Any
    returned: Any = None


class SeveralStreams(Streams):
    """The first turn on the stream that is there, the others on ``number`` streams in rotation.

    That module 1 is on none of them lets all others read what it computes, such as a mask: nothing
    of theirs is launched there before the end of the step.
    """

    def __init__(self, number: int, machine: Machine) -> None:
        self._machine = machine
        self._number = number
        self._others: list[Any] = []
        self._main: Any = None
        self._turns: Sequence[int] = ()
        self._ready: Any = None
        self._used: list[Any] = []
        self._borrowed: list[_Loan] = []  # by what is being launched
        self._lent: list[_Loan] = []

    def begin(self, turns: Sequence[int]) -> None:
        self._main = self._machine.current()
        self._others = self._machine.create(self._number, self._main)
        self._turns = turns

    def end(self) -> None:
        try:
            self._settle()
            for loan in self._lent:  # what goes now may be taken from its stream at any time
                self._machine.wait(loan.home, loan.returned)
            for stream in self._used:
                self._machine.wait(self._main, self._machine.mark(stream))
        finally:  # a recording that has failed refuses marks, and must end where it began
            self._machine.switch(self._main)
            self._machine.leave()
            self._used, self._borrowed, self._lent, self._ready = [], [], [], None

    def ready(self) -> None:
        self._ready = self._machine.mark(self._machine.current())

    def forward(self, j: int) -> None:
        self._switch(self._of(j), self._ready)
        here = self._machine.current()
        due = [loan for loan in self._lent if loan.home == here]
        for loan in due:
            self._machine.wait(here, loan.returned)
        self._lent = [loan for loan in self._lent if loan.home != here]

    def follow(self, j: int) -> None:
        if self._of(j) != self._machine.current():
            self._switch(self._of(j), self._machine.mark(self._machine.current()))

    def back_to(self, j: int) -> None:
        self._switch(self._of(j), None)

    def home(self, tensor: Tensor, source: Tensor | None = None, of_source: Any = None) -> Any:
        if source is not None and _share_memory(tensor, source):
            return of_source
        # A gradient may be the one that it was made from, which is lent to this module.
        lent = (loan.home for loan in self._borrowed if _share_memory(tensor, loan.tensor))
        return next(lent, self._machine.current())

    def lend(self, tensor: Tensor, home: Any) -> None:
        if home != self._machine.current():
            # An alias: the tensor itself may be freed by way of its content.
            self._borrowed.append(_Loan(tensor.detach(), home))

    def check(self, tensor: Tensor) -> None:
        if not self._machine.holds(tensor):
            raise UserError(
                f"streams: a module's output lies on {tensor.device}, and others on another "
                "device; use streams=1"
            )

    def _of(self, j: int) -> Any:
        turn = self._turns[j]
        return self._others[(turn - 1) % len(self._others)] if turn else self._main

    def _switch(self, stream: Any, after: Any) -> None:
        self._settle()
        if after is not None:
            self._machine.wait(stream, after)
        if stream != self._main and stream not in self._used:
            self._used.append(stream)
        self._machine.switch(stream)

    def _settle(self) -> None:
        """What was borrowed is read by all that has been launched so far, and by no more."""
        if self._borrowed:
            returned = self._machine.mark(self._machine.current())
            for loan in self._borrowed:
                loan.returned = returned
            self._lent += self._borrowed
            self._borrowed = []


class _Cuda:
    """A CUDA device's streams."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._outer = torch.cuda.current_device()

    def current(self) -> Any:
        return torch.cuda.current_stream(self._device)

    def switch(self, stream: Any) -> None:
        torch.cuda.set_stream(stream)  # and its device

    def create(self, number: int, beside: Any) -> list[Any]:
        return _created(self._device, number, beside.stream_id, threading.get_ident())

    def mark(self, stream: Any) -> Any:
        return stream.record_event()

    def wait(self, stream: Any, mark: Any) -> None:
        stream.wait_event(mark)

    def holds(self, tensor: Tensor) -> bool:
        return tensor.device == self._device

    def leave(self) -> None:
        torch.cuda.set_device(self._outer)


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)


@functools.lru_cache(maxsize=64)
def _created(device: torch.device, number: int, beside: int, thread: int) -> list[Any]:
    made: list[Any] = []
    while len(made) < number:  # PyTorch has 32, and gives them out again
        stream = torch.cuda.Stream(device)
        if stream.stream_id != beside and stream not in made:
            made.append(stream)
    return made


def streams_on(device: torch.device, number: int) -> Streams:
    """The streams of a device, ``number`` beside the one that is there; one where 1 is asked for.

    Devices other than CUDA's have one.
    """
    if number == 1 or device.type != "cuda":
        return Streams()
    return SeveralStreams(number, _Cuda(device))
