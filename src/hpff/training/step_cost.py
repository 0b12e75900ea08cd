"""What a training step costs: seconds and peak bytes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from hpff.memory import AllocationCounter
from hpff.training.setup import Parts

_CURVE_POINTS = 200
_COUNTED_STEPS = 2  # The first makes the momentum buffers, the second has them from its start.


class StepClock:
    """Seconds of each step; on CUDA by events, so that no step waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: list[float] = []
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def timed(self) -> int:
        """The number of steps timed so far."""
        return len(self._seconds) + len(self._events)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time the step inside."""
        if self._cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((start, end))
        else:
            began = time.perf_counter()
            yield
            self._seconds.append(time.perf_counter() - began)

    def median(self) -> float:
        """The median step, in seconds; waits for the device."""
        if self._cuda:
            torch.cuda.synchronize()
            self._seconds += [start.elapsed_time(end) / 1000 for start, end in self._events]
            self._events.clear()
        return statistics.median(self._seconds)


class _Recorder(AllocationCounter):
    """Notes the bytes alive after every allocation and release."""

    def __init__(self) -> None:
        super().__init__()
        self.curve: list[int] = []

    def _born(self, key: int, size: int) -> None:
        self.curve.append(self.current)

    def _died(self, key: int, size: int) -> None:
        self.curve.append(self.current)


class PeakMemory:
    """Peak bytes of a training step: parameters, gradients, optimizer states, activations, batch.

    On CUDA the allocator's peak less the data set that lives there too; elsewhere counted, by
    following every tensor's storage through the first two steps.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._steps = 0
        self._peak = 0
        self._curve: list[int] = []
        self.source = "allocator" if parts.device.type == "cuda" else "counted"

    @property
    def slows_next_step(self) -> bool:
        """Whether the next step is counted, which takes time of its own."""
        return self.source == "counted" and self._steps < _COUNTED_STEPS

    def epoch_begins(self) -> None:
        """Leave out what came since the last epoch's training: evaluation, saving."""
        if self.source == "allocator":
            torch.cuda.reset_peak_memory_stats()

    @contextmanager
    def step(self, batch: Iterable[torch.Tensor]) -> Iterator[None]:
        """Watch a step on `batch`."""
        counted = self.slows_next_step
        self._steps += 1
        if not counted:
            yield
            return
        # What compiled code allocates cannot be followed; and what the compiler once met under a
        # counter it would never compile.
        with torch.compiler.set_stance("force_eager"), _Recorder() as counter:
            counter.track([*batch, *self._standing()])
            counter.curve = [counter.current]
            yield
        self._peak = max(self._peak, counter.peak)
        self._curve = list(counter.curve)  # it grows when these tensors die later

    def bytes(self) -> int:
        """The peak of training so far; to be read at the end of an epoch's training."""
        if self.source == "allocator":
            peak = torch.cuda.max_memory_allocated() - self._parts.data_bytes
            self._peak = max(self._peak, peak)
        return self._peak

    def curve(self) -> list[int]:
        """Bytes alive over the last counted step, the most in each of up to 200 parts of it.

        The parts are of equal numbers of allocations and releases; nothing where none was counted.
        """
        size = math.ceil(len(self._curve) / _CURVE_POINTS)
        starts = range(0, len(self._curve), size or 1)
        return [max(self._curve[start : start + size]) for start in starts]

    def _standing(self) -> list[torch.Tensor]:
        """Tensors that are there before the step."""
        learner, optimizers = self._parts.learner, self._parts.optimizers
        return [*learner.parameters(), *learner.buffers(), *optimizers.state_tensors()]
