"""Ranks that wait for none: each trains on what it has, over again where nothing new has come.

Decoupled greedy learning with a replay buffer: Belilovsky, Eickenberg and Oyallon, "Decoupled
Greedy Learning of CNNs", ICML 2020, https://arxiv.org/abs/1901.08164, algorithm 2. No gradient
comes back over a boundary.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpff.errors import UserError, shown
from hpff.learner import LocalLearner
from hpff.parallel.messages import Message, gone
from hpff.parallel.module_parallel import ModuleParallel
from hpff.parallel.neighbors import Connections
from hpff.parallel.roll_call import LostRankError
from hpff.parallel.sent_batches import SentBatches
from hpff.torch_support.model_io import tensors_in
from hpff.torch_support.random_state import step_seed


@dataclass(eq=False)
class Entry:
    """A batch in a buffer.

    Attributes:
        tensors: the inputs', the targets, and the features that the rank before made of them.
        number: of the step in which it made them.
        used: how often a step was taken on it here.
    """

    tensors: list[Tensor]
    number: int
    used: int = 0


class ReplayBuffer:
    """The batches that came last, of which the one least often used is taken, the newest of equals.

    Where it is full, the oldest makes room: none lags by more than M - 1 of the steps behind it.

    Args:
        size: M, how many batches.
        parts: how many tensors make a batch.
    """

    def __init__(self, size: int, parts: int) -> None:
        self._size = size
        self._parts = parts
        self._coming: list[Tensor] = []
        self._entries: list[Entry] = []
        self._newest = 0
        self._fault: Exception | None = None
        self._changed = threading.Condition()

    def put(self, arrived: Message | Exception) -> None:
        """Take in a tensor, or what went wrong; never waits."""
        with self._changed:
            if isinstance(arrived, Exception):
                self._fault = arrived
            else:
                self._coming.append(arrived.tensor)
                if len(self._coming) == self._parts:
                    self._add(Entry(self._coming, arrived.number))
                    self._coming = []
            self._changed.notify()

    def get(self, timeout: float) -> tuple[Entry, int]:
        """The batch to take the next step on, and by how many steps it lags behind the newest.

        Raises:
            queue.Empty: nothing has come yet, nor does it in so many seconds.
            Exception: what went wrong.
        """
        with self._changed:
            there = self._changed.wait_for(lambda: self._entries or self._fault, timeout)
            if self._fault:
                raise self._fault
            if not there:
                raise queue.Empty
            entry = min(self._entries, key=lambda entry: (entry.used, -entry.number))
            entry.used += 1
            return entry, self._newest - entry.number

    def _add(self, entry: Entry) -> None:
        if len(self._entries) == self._size:
            self._entries.pop(0)
        self._entries.append(entry)
        self._newest = entry.number


class ReplayParallel(ModuleParallel):
    """A :class:`~hpff.parallel.ModuleParallel` whose ranks do not wait for each other.

    A rank takes each step on the batch in its buffer that it has used least often, so it goes on
    while the rank before is late, and leaves batches out where that one is ahead. The first rank
    alone is given batches, and its weights are those of one process; the others call
    ``backward(None, None, on_module_done=...)`` as often as they like. What they see depends on
    who was how fast, so two runs differ. Evaluate the model by its ``state_dict``, in one process.

    Args:
        learner: as there; no cascade may cross from one rank's modules to another's.
        buffer: M, how many batches with their features a rank holds.
        sizes: as there.
        costs: as there.
        device: as there.
        seed: as there.
        timeout: as there.

    Attributes:
        lags: how many of this rank's steps were on features that lag so many of the steps of the
            rank before behind the newest that had come: at most M - 1.
        replays: how many of them were on a batch that was used before.

    Raises:
        UserError: as there; a cascade crosses; the buffer is none.
    """

    def __init__(
        self,
        learner: LocalLearner,
        *,
        buffer: int,
        sizes: Sequence[int] | None = None,
        costs: Sequence[float] | None = None,
        device: torch.device | str | None = None,
        seed: int = 0,
        timeout: float = 600.0,
    ) -> None:
        if isinstance(buffer, bool) or not isinstance(buffer, int) or buffer < 1:
            raise UserError(f"buffer: is {shown(buffer)}, expected a whole number of at least 1")
        self._buffer = ReplayBuffer(buffer, len(list(tensors_in(learner.example))) + 2)
        super().__init__(
            learner,
            sizes=sizes,
            costs=costs,
            device=device,
            seed=seed,
            timeout=timeout,
            batches="sent",
        )
        replay = _Replay(
            self.connections,
            learner.example,
            is_first=self._part.is_first,
            buffer=self._buffer,
            seed=seed + self.rank,
            timeout=timeout,
        )
        self.lags, self._replay = replay.lags, replay
        self._sent = replay
        self._steps = self._steps_by(replay)

    @property
    def replays(self) -> int:
        return self._replay.replays

    def forward(self, inputs: Any) -> Any:
        """Refused: features on their way to a buffer are no batch of an evaluation."""
        raise UserError(
            "ranks that do not wait for each other cannot evaluate together; gather state_dict() "
            "and evaluate in one process"
        )

    def close(self) -> None:
        """Nothing comes any more; every rank must call it, before its group is destroyed.

        A rank may have taken its steps long before the one before it, which still sends: it waits
        for that one as long as it lives.
        """
        self.finish()
        self.connections.close(limited=False)

    def _connect(
        self, timeout: float, rows: Sequence[Sequence[int]], batch_tensors: int
    ) -> Connections:
        last = 0
        for size in self.sizes[:-1]:
            last += size
            if crossing := self.learner.reach.crossing(last):
                raise UserError(
                    f"the cascade that ends at module {min(crossing)} crosses from one rank's "
                    "modules to another's, which do not wait for its gradient; use cascade=1, or "
                    "other sizes"
                )
        return Connections(self.first, self.device, timeout, rows, arrived=self._buffer)


class _Replay(SentBatches):
    """What stands for the ranks before and after one that waits for none.

    Args:
        connections, example, is_first: as for all batches that are sent.
        buffer: which fills by itself.
        seed: of this rank's random numbers.
        timeout: seconds that the first step waits.
    """

    def __init__(
        self,
        connections: Connections,
        example: Any,
        *,
        is_first: bool,
        buffer: ReplayBuffer,
        seed: int,
        timeout: float,
    ) -> None:
        super().__init__(connections, example, is_first=is_first)
        self._buffer = buffer
        self._seed = seed
        self._timeout = timeout
        self._content: list[Tensor] = []
        self._features = torch.empty(0)
        self._number = 0
        self.lags: Counter[int] = Counter()
        self.replays = 0

    def take(
        self, inputs: Any, targets: Tensor | None, *, with_targets: bool = True
    ) -> tuple[Any, Any]:
        """What was given on the first rank; elsewhere what the buffer has."""
        self.check(inputs, targets)
        self._number += 1
        if self._is_first:
            self._content = self.content_of(inputs, targets)
            return inputs, targets
        before = self._connections.rank - 1
        try:
            entry, lag = self._buffer.get(self._timeout)
        except queue.Empty:
            raise LostRankError(
                f"rank {before} has sent nothing for {self._timeout:.0f} s (the first batch is due)"
            ) from None
        except RuntimeError as error:
            raise gone(before, error) from error
        self.lags[lag] += 1
        self.replays += entry.used > 1
        *self._content, self._features = entry.tensors
        return self.batch_of(self._content)

    def receive_output(self) -> Tensor:
        torch.manual_seed(step_seed(self._seed, self._number))
        return self._features.clone()  # a step may write to it, and the buffer keeps it

    def send_output(self, output: Tensor) -> None:
        self._connections.send_batch([*self._content, output], self._number)

    def receive_gradient(self, end: int) -> Tensor:
        raise AssertionError("no cascade crosses")

    def send_gradient(self, end: int, gradient: Tensor) -> None:
        raise AssertionError("no cascade crosses")
