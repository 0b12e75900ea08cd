"""Tensors on their way from one rank to the next, of any shape, while both compute.

A message is a header of fixed size, which says what follows, and the tensor's content in the order
in which it lies in memory, so that it arrives with the same strides: kernels then give the same
bits. A thread of the receiver waits for the next message, so that it comes in while the rank
computes; the sender does not wait either, but for a neighbor that is a step or two messages behind.
"""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
from collections import deque
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from hpff.errors import UserError
from hpff.parallel.roll_call import LostRankError

_DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.int8,
    torch.int16,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.complex32,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
_MOST_DIMS = 8
_FIELDS = 4 + 2 * _MOST_DIMS
_CLOSED, _TENSOR = 0, 1
_AHEAD = 2  # messages that are sent, or received, before they are needed
MOST_SENT = _AHEAD  # messages that a sender still holds
MOST_RECEIVED = _AHEAD + 1  # and a receiver before they are needed, with the one that comes in
_FOREVER = timedelta(days=365)
_UNUSED = 1  # a tag that no message has


class Message(NamedTuple):
    """What came.

    Attributes:
        tensor: its content, in the layout that the sender's had.
        number: what the sender gave besides.
        note: bytes that came with it (uint8).
    """

    tensor: Tensor
    number: int
    note: Tensor


class Outbox:
    """Sends to one rank, in order.

    Args:
        to: the rank.
        group: used for this direction between these two ranks alone.
        note_size: how many bytes go with each message.
        timeout: seconds that a message may wait for its receiver.
    """

    def __init__(self, to: int, group: Any, note_size: int, timeout: float) -> None:
        self._to = to
        self._group = group
        self._note_size = note_size
        self._timeout = timeout
        self._waiting: deque[tuple[Any, Tensor]] = deque()

    def send(self, tensor: Tensor, number: int = 0, note: Tensor | None = None) -> None:
        """Send a tensor, which must not change until it has arrived.

        Raises:
            LostRankError: the rank is gone, or takes nothing.
            UserError: the tensor's type cannot travel.
        """
        self._send(_header(tensor, number, note, self._note_size))
        if tensor.numel():
            self._send(as_bytes(_flat(tensor.resolve_conj().resolve_neg()).cpu()))
        self._wait(2 * _AHEAD)

    def close(self) -> None:
        """Say that nothing comes any more, and wait until all has arrived."""
        header = torch.zeros(8 * _FIELDS + self._note_size, dtype=torch.uint8)
        self._send(header)
        self._wait(0)

    def _send(self, tensor: Tensor) -> None:
        try:
            work = dist.isend(tensor, self._to, group=self._group)
        except RuntimeError as error:
            raise gone(self._to, error) from error
        self._waiting.append((work, tensor))

    def _wait(self, left: int) -> None:
        while len(self._waiting) > left:
            work, _ = self._waiting[0]
            try:
                work.wait(timedelta(seconds=self._timeout))
            except RuntimeError as error:
                if "imed out" in str(error) or "imeout" in str(error):
                    raise LostRankError(
                        f"rank {self._to} has taken nothing for {self._timeout:.0f} s: it hangs, "
                        "was stopped or is very slow; see what it printed"
                    ) from error
                raise gone(self._to, error) from error
            self._waiting.popleft()


class Inbox:
    """Receives from one rank, in order, ahead of time.

    Args:
        source: the rank.
        group: used for this direction between these two ranks alone.
        device: where tensors are put.
        note_size: how many bytes come with each message.
        timeout: seconds that ``get`` waits.
        a_step: how many messages come in a step; so many are taken in ahead, or more, that no rank
            waits for one to send that waits for itself.
        arrived: takes what comes, by its ``put``; None: a short queue.
    """

    def __init__(
        self,
        source: int,
        group: Any,
        device: torch.device,
        note_size: int,
        timeout: float,
        a_step: int = 1,
        arrived: Any = None,
    ) -> None:
        self._source = source
        self._group = group
        self._place = dist.get_group_rank(group, source)
        self._device = device
        self._note_size = note_size
        self._timeout = timeout
        self._arrived = queue.Queue(max(_AHEAD, a_step)) if arrived is None else arrived
        self._thread = threading.Thread(target=self._receive_all, daemon=True)
        self._thread.start()
        atexit.register(self.stop)

    def get(self, what: str) -> Message:
        """The next message.

        Args:
            what: is waited for, in words.

        Raises:
            LostRankError: the rank is gone, or nothing came in time.
        """
        try:
            arrived = self._arrived.get(timeout=self._timeout)
        except queue.Empty:
            raise LostRankError(
                f"rank {self._source} has sent nothing for {self._timeout:.0f} s ({what} is due): "
                "it hangs, was stopped or is very slow; see what it printed"
            ) from None
        if isinstance(arrived, Exception):
            raise gone(self._source, arrived) from arrived
        message: Message = arrived
        return message

    def join(self, *, limited: bool = True) -> None:
        """Wait until the sender has closed its end, or is gone.

        Args:
            limited: whether to give up after the time that ``get`` waits.

        Raises:
            LostRankError: it has not, in that time.
        """
        self._thread.join(self._timeout if limited else None)
        if self._thread.is_alive():
            raise LostRankError(
                f"rank {self._source} has not come to its end for {self._timeout:.0f} s: it "
                "hangs, was stopped, is very slow or took more steps; see what it printed"
            )
        atexit.unregister(self.stop)

    def stop(self) -> None:
        """Close the connection, whatever is still due.

        A thread that waits for a message while the interpreter goes down aborts the process. Gloo
        closes a connection, and so ends every wait for it, where one of these takes too long.
        """
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                late = self._group.recv([torch.empty(1)], self._place, _UNUSED)
                late.wait(timedelta(milliseconds=1))
            self._thread.join(1)

    def _receive_all(self) -> None:
        try:
            while (message := self._receive()) is not None:
                self._arrived.put(message)
        except Exception as error:  # noqa: BLE001 - the thread that waits for it raises it
            self._arrived.put(error)

    def _receive(self) -> Message | None:
        header = torch.empty(8 * _FIELDS + self._note_size, dtype=torch.uint8)
        self._fill(header)
        fields = header[: 8 * _FIELDS].view(torch.int64).tolist()
        if fields[0] == _CLOSED:
            return None
        dims = fields[3]
        shape, strides = fields[4 : 4 + dims], fields[4 + _MOST_DIMS : 4 + _MOST_DIMS + dims]
        tensor = torch.empty_strided(shape, strides, dtype=_DTYPES[fields[1]])
        if tensor.numel() and _is_dense(tensor):
            self._fill(as_bytes(_flat(tensor)))
        elif tensor.numel():
            content = torch.empty(tensor.numel(), dtype=tensor.dtype)
            self._fill(as_bytes(content))
            tensor.copy_(content.view(shape))
        return Message(tensor.to(self._device), fields[2], header[8 * _FIELDS :])

    def _fill(self, content: Tensor) -> None:
        """Take in what comes next, however late: ``get`` alone gives up."""
        work = dist.irecv(content, self._source, group=self._group)
        assert work is not None
        work.wait(_FOREVER)


def _header(tensor: Tensor, number: int, note: Tensor | None, note_size: int) -> Tensor:
    strides = tensor.stride()
    if 0 in strides:  # of an expanded tensor: the receiver must be able to write to it
        strides = torch.empty_like(tensor, device="meta").stride()
    rest = [0] * (_MOST_DIMS - tensor.ndim)
    kind = _kind_of(tensor)
    fields = [_TENSOR, kind, number, tensor.ndim, *tensor.shape, *rest, *strides, *rest]
    header = torch.zeros(8 * _FIELDS + note_size, dtype=torch.uint8)
    header[: 8 * _FIELDS] = torch.tensor(fields, dtype=torch.int64).view(torch.uint8)
    if note is not None:
        header[8 * _FIELDS :] = note
    return header


def as_bytes(flat: Tensor) -> Tensor:
    """The memory of a tensor of one axis as uint8, for Gloo does not know all types.

    Raises:
        UserError: its type cannot travel.
    """
    _kind_of(flat)
    return flat.view(torch.uint8)


def _kind_of(tensor: Tensor) -> int:
    if tensor.dtype not in _DTYPES:
        raise UserError(
            f"tensors of type {str(tensor.dtype).removeprefix('torch.')} cannot travel from rank "
            "to rank; expected floating-point or complex numbers, integers or bool"
        )
    return _DTYPES.index(tensor.dtype)


def _flat(tensor: Tensor) -> Tensor:
    """The content in the order in which it lies in memory, where that has no gaps."""
    if _is_dense(tensor):
        return tensor.as_strided((tensor.numel(),), (1,))
    return tensor.contiguous().view(-1)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements lie in memory without gaps and overlaps, in any order of the axes."""
    expected = 1
    axes = sorted(zip(tensor.stride(), tensor.shape, strict=True))
    for stride, size in axes:
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def gone(rank: int, error: Exception) -> LostRankError:
    """What to raise where a connection to a rank failed."""
    text = next(iter(str(error).splitlines()), type(error).__name__)
    reason = "its connection closed" if "onnection" in text else text[:160]
    return LostRankError(f"rank {rank} is gone ({reason}); see what it printed")
