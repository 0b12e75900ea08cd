"""Measured step time and peak memory of several training strategies, in turns in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpff.cutting.local_modules import Partition
from hpff.errors import UserError
from hpff.memory.planning import BEST, default_strategies
from hpff.memory.rehearsal import Stage, best_checkpointing, count
from hpff.memory.steps import Strategy, TrainingStep, Workload
from hpff.torch_support.cuda_graph import Replayed
from hpff.torch_support.out_of_memory import is_out_of_memory

_WARM_UP = 3


@dataclass(frozen=True)
class Measured:
    """What a training step took by one strategy.

    Attributes:
        seconds: of each round's step: forward and every backward, the optimizer left out.
        over_first: each round's time over that of the first strategy in the same round.
        peak: bytes at the worst moment of a step, the optimizer's step included; None where it
            cannot be told.
        fault: why it cannot be done.
    """

    strategy: Strategy
    seconds: tuple[float, ...] = ()
    over_first: tuple[float, ...] = ()
    peak: int | None = None
    fault: str = ""

    @property
    def step_seconds(self) -> float:
        """The median."""
        return statistics.median(self.seconds)

    def quartiles(self) -> tuple[float, float, float]:
        """Of the rounds' ratios to the first strategy: lower, median, upper."""
        low, middle, high = statistics.quantiles(self.over_first, n=4)
        return low, middle, high


@dataclass(frozen=True)
class Bench:
    """Several strategies side by side. ``peak_source`` is "counted" or "allocator"."""

    workload: Workload
    batch: int
    modules: int
    device: str
    compiled: bool
    cuda_graph: bool
    peak_source: str
    rows: tuple[Measured, ...]

    def to_plain(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        return {
            "workload": {**self.workload.to_plain(), "batch": self.batch, "modules": self.modules},
            "device": self.device,
            "compiled": self.compiled,
            "cuda_graph": self.cuda_graph,
            "peak_source": self.peak_source,
            "rows": [
                {
                    "label": str(row.strategy),
                    **row.strategy.to_plain(),
                    "step_seconds": row.step_seconds if row.seconds else None,
                    "over_first_quartiles": row.quartiles() if row.seconds else None,
                    "seconds": row.seconds,
                    "peak_bytes": row.peak,
                    "fault": row.fault,
                }
                for row in self.rows
            ],
        }


def bench(
    workload: Workload,
    *,
    batch: int,
    strategies: Sequence[Strategy] | None = None,
    rounds: int = 10,
    device: str = "cpu",
    compiled: bool = False,
    cuda_graph: bool = False,
    observe: Callable[[str], None] = lambda _: None,
) -> Bench:
    """Measure steps of ``workload`` on random images; every round runs every strategy once.

    On CUDA the peak is the allocator's, less what the other strategies hold. On the CPU it is
    counted in a step of its own, tensor by tensor; what compiled code allocates cannot be.

    Args:
        workload: what is trained, and on what.
        batch: images in a batch, 2 or more.
        strategies: as for ``plan``; the first is what the others are compared with.
        rounds: steps to measure, after a few that warm up; 2 or more.
        device: "cpu" or "cuda".
        compiled: backprop compiled as a whole, local methods by blocks and auxiliary networks;
            checkpointing and recomputation are left out.
        cuda_graph: each step recorded as a CUDA graph, and replayed; needs "cuda".
        observe: called before each piece of work.

    Raises:
        UserError: the first strategy cannot be done.
    """
    if batch < 2 or rounds < 2:
        raise UserError(f"batch is {batch} and rounds {rounds}; expected 2 or more of both")
    if cuda_graph and device != "cuda":
        raise UserError("a CUDA graph (--cuda-graph) needs a CUDA device; leave it out")
    strategies = [
        best_checkpointing(Stage(workload), batch)[0].strategy
        if strategy.segment == BEST
        else strategy
        for strategy in (default_strategies() if strategies is None else strategies)
    ]
    torch.manual_seed(0)
    images = torch.rand(batch, *workload.image, device=device)
    racers = []
    for number, strategy in enumerate(strategies):
        observe(f"{strategy}: setting up")
        racer = _Racer(workload, strategy, device, compiled=compiled, cuda_graph=cuda_graph)
        racer.set_up(images)
        if racer.fault and number == 0:
            raise UserError(f"{strategy}: {racer.fault}")
        racers.append(racer)
    for _ in range(rounds):
        for racer in racers:
            observe(str(racer.strategy))
            racer.run(images)
    source = "allocator" if device == "cuda" else "counted"
    rows = tuple(racer.measured(racers[0].seconds) for racer in racers)
    modules = len(racers[0].partition)
    return Bench(workload, batch, modules, device, compiled, cuda_graph, source, rows)


class _Racer:
    """A training strategy, and its measurements."""

    def __init__(
        self,
        workload: Workload,
        strategy: Strategy,
        device: str,
        *,
        compiled: bool,
        cuda_graph: bool,
    ) -> None:
        self.strategy = strategy
        self.fault = ""
        self.seconds: list[float] = []
        self._peak: int | None = None
        self._workload, self._device, self._compiled = workload, device, compiled
        self._cuda_graph = cuda_graph

    def set_up(self, images: Tensor) -> None:
        """Build, warm up, and take the peak."""
        if self._compiled and self.strategy.segment:
            self.fault = "checkpointing is measured only without --compile"
            return
        try:
            model = self._workload.build().to(self._device)
            self._step = TrainingStep(model, self._workload, self.strategy)
            if self._compiled:
                self._step.trained.compile()
            shape = self._step.targets_of(len(images))
            self._targets = torch.randint(self._workload.num_classes, shape, device=self._device)
            self._fill: Callable[[Tensor, Tensor], object] = self._step.fill_gradients
            for _ in range(_WARM_UP):
                self._timed(images)
            self._peak = self._measure_peak(images)
            if self._cuda_graph:
                self._fill = Replayed(self._step.fill_gradients)
                for _ in range(_WARM_UP + 1):
                    self._timed(images)
        except (UserError, RuntimeError, MemoryError) as error:
            if not isinstance(error, UserError) and not is_out_of_memory(error):
                raise
            self.fault = next(iter(str(error).splitlines()), "out of memory")

    @property
    def partition(self) -> Partition:
        """The cut."""
        return self._step.partition

    def run(self, images: Tensor) -> None:
        """One measured step."""
        if not self.fault:
            self.seconds.append(self._timed(images))

    def measured(self, base: Sequence[float]) -> Measured:
        """Everything, beside the first strategy's seconds."""
        if self.fault:
            return Measured(self.strategy, fault=self.fault)
        ratios = tuple(mine / other for mine, other in zip(self.seconds, base, strict=True))
        return Measured(self.strategy, tuple(self.seconds), ratios, self._peak)

    def _timed(self, images: Tensor) -> float:
        began = time.perf_counter()
        self._fill(images, self._targets)
        if self._device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        self._step.trained.zero_grad()
        return seconds

    def _measure_peak(self, images: Tensor) -> int | None:
        if self._device != "cuda":
            if self._compiled:
                return None
            return count(self._step, len(images), self._workload.image).peak
        several = self.strategy.settings.streams > 1  # each keeps what it lets go of
        now = torch.cuda.memory_reserved if several else torch.cuda.memory_allocated
        most = torch.cuda.max_memory_reserved if several else torch.cuda.max_memory_allocated
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = now()
        self._step.fill_gradients(images, self._targets)
        self._step.finish()
        own = [tensor for _, tensor in self._step.standing()]
        held = sum(tensor.nbytes for tensor in (images, self._targets, *own))
        return most() - before + held
