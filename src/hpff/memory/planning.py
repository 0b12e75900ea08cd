"""The peak memory of a training step, without a device and without allocating it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpff import methods as known_methods
from hpff.cutting.partition import Partition
from hpff.engine.reach import Cascade
from hpff.engine.recomputation import Recompute
from hpff.errors import UserError
from hpff.memory.arithmetic import ArithmeticCounter
from hpff.memory.checkpointing import block_bytes, chain, likely_lengths
from hpff.memory.counting import AllocationCounter
from hpff.memory.ledger import Ledger, Owner
from hpff.memory.steps import Strategy, TrainingStep, Workload
from hpff.settings import BASELINE
from hpff.torch_support.fake_tensors import FakeTensors, fake_model

BEST = -1  # a strategy's segment that is to be found
_CHECKPOINT_TRIALS = 3
_Peak = Callable[[int], float]


@dataclass(frozen=True)
class Row:
    """What a training step takes by one strategy.

    Attributes:
        strategy: how the network is trained.
        peak: bytes of all tensors at the worst moment of a step; None if it cannot be done.
        alive: these bytes by owner.
        moment: when that is.
        curve: bytes alive at the step's start, after each allocation and after each release (or
            releases, if there is no allocation between them).
        largest_batch: the largest batch whose peak is within the budget; 0 if none is, None if
            no budget was given.
        fault: why it cannot be done.
    """

    strategy: Strategy
    peak: int | None = None
    alive: tuple[tuple[Owner, int], ...] = ()
    moment: str = ""
    curve: tuple[int, ...] = ()
    largest_batch: int | None = None
    fault: str = ""

    def alive_of(self, *what: str) -> int:
        """Bytes at the peak that belong to these kinds of owners."""
        return sum(size for owner, size in self.alive if owner.what in what)


@dataclass(frozen=True)
class Plan:
    """The peak memory of a workload's step by several strategies.

    Attributes:
        partition: the cut, with the patches of the last local strategy.
    """

    workload: Workload
    batch: int
    budget: int | None
    partition: Partition
    rows: tuple[Row, ...]

    def to_plain(self) -> dict[str, Any]:
        """All but the curves as plain data, for JSON."""
        workload = asdict(self.workload)
        if not isinstance(self.workload.model, str):
            workload["model"] = getattr(self.workload.model, "__name__", "model")
        return {
            "workload": {**workload, "batch": self.batch},
            "budget_bytes": self.budget,
            "modules": [
                {
                    "index": module.index,
                    "cut": module.cut,
                    "parameters": module.parameters,
                    "output_shape": list(module.output_shape),
                }
                for module in self.partition
            ],
            "rows": [
                {
                    "label": str(row.strategy),
                    **row.strategy.to_plain(),
                    "peak_bytes": row.peak,
                    "moment": row.moment,
                    "alive": [
                        {"what": owner.what, "module": owner.module, "bytes": size}
                        for owner, size in row.alive
                    ],
                    "largest_batch": row.largest_batch,
                    "fault": row.fault,
                }
                for row in self.rows
            ],
        }


def plan(
    workload: Workload,
    *,
    batch: int,
    strategies: Sequence[Strategy] | None = None,
    budget: int | None = None,
    observe: Callable[[str], None] = lambda _: None,
) -> Plan:
    """The peak memory of a step of ``workload`` by several strategies, side by side.

    Images, parameters, gradients and the optimizer's state are included. Everything runs under
    fake tensors: the numbers are exact and the same every time, but scratch space inside kernels
    is not in them.

    Args:
        workload: what is trained, and on what.
        batch: images in a batch.
        strategies: how to train; by default ``default_strategies()``. A segment of ``BEST`` is
            found here: the length that takes the least.
        budget: bytes; then each row has its largest batch.
        observe: called with a row's label before its work begins.

    Raises:
        UserError: the model is unknown, does not run on such images or cannot be cut as asked.
    """
    if batch < 2:
        raise UserError(f"batch is {batch}; expected 2 or more, as BatchNorm needs")
    strategies = default_strategies() if strategies is None else strategies
    observe("the cut")
    cut = Rehearsal(workload, Strategy.of()).step.partition
    for strategy in strategies:
        k = strategy.settings.cascade
        if isinstance(k, int) and k > len(cut):
            raise UserError(f"cascade is {k}, expected 1 to {len(cut)}, the number of modules")
    rows = []
    for strategy in strategies:
        observe(str(strategy))
        row, partition = _row(workload, strategy, batch, budget)
        rows.append(row)
        cut = partition or cut
    return Plan(workload, batch, budget, cut, tuple(rows))


def default_strategies(
    methods: Sequence[str] | None = None,
    *,
    cascade: Cascade = 2,
    patches: int = 2,
    recompute: Sequence[Recompute] = (),
) -> list[Strategy]:
    """Backprop, with and without checkpointing, and each method alone and with HPFF.

    Args:
        methods: names; by default all that are known.
        cascade: k of HPFF.
        patches: n of HPFF.
        recompute: ways to recompute; each method with HPFF gets one more strategy for each.

    Raises:
        UserError: a method is unknown.
    """
    strategies = [Strategy.of(), Strategy.of(segment=BEST)]
    known = [name for name, _ in known_methods.names()]
    for method in known if methods is None else methods:
        known_methods.create(method)
        if method != "bp":
            hpff = Strategy.of(method, cascade, patches)
            strategies += [
                Strategy.of(method),
                hpff,
                *(hpff.with_settings(recompute=each) for each in recompute),
            ]
    return list({str(strategy): strategy for strategy in strategies}.values())


def _row(
    workload: Workload, strategy: Strategy, batch: int, budget: int | None
) -> tuple[Row, Partition | None]:
    """A row, and the cut with the patches that are in force for it."""
    try:
        if strategy.segment == BEST:
            strategy = replace(strategy, segment=best_segment(workload, batch))
        rehearsal = Rehearsal(workload, strategy)
    except UserError as error:
        if str(strategy) == BASELINE:
            raise
        return Row(strategy, fault=str(error)), None
    ledger = rehearsal.run(batch)
    row = Row(
        strategy=strategy,
        peak=ledger.peak,
        alive=tuple(sorted(ledger.at_peak().items(), key=lambda item: -item[1])),
        moment=_moment(ledger),
        curve=tuple(ledger.curve()),
    )
    if budget is not None:
        largest = largest_batch(peak_by_batch(rehearsal, batch, row.curve), budget)
        row = replace(row, largest_batch=largest)
    return row, rehearsal.step.partition if not strategy.settings.is_backprop else None


class Rehearsal:
    """A training step without memory: under fake tensors, which have a shape and nothing else."""

    def __init__(self, workload: Workload, strategy: Strategy) -> None:
        self._workload = workload
        self._mode = FakeTensors()
        model = fake_model(workload.build, self._mode)
        with self._mode:
            self.step = TrainingStep(model, workload, strategy)

    def run(self, batch: int) -> Ledger:
        """What a step on a batch takes."""
        with self._mode:
            return count(self.step, batch, self._workload.image)

    def peak(self, batch: int) -> int:
        """Bytes at the worst moment of a step on a batch."""
        return self.run(batch).peak

    def arithmetic(self, batch: int) -> int:
        """Multiplications and additions of a step's forward and backwards."""
        with self._mode:
            images = torch.zeros(batch, *self._workload.image)
            targets = torch.zeros(batch, dtype=torch.int64)
            with ArithmeticCounter() as counter:
                self.step.fill_gradients(images, targets)
            return int(counter.total)

    def likely_lengths(self, batch: int) -> list[int]:
        """Lengths of checkpointed segments, the most promising first."""
        with self._mode, AllocationCounter() as counter:
            images = torch.empty(batch, *self._workload.image)
            runs = chain(self.step.model, images[:2])
            kept = []
            sizes = block_bytes(runs, lambda: kept.append(self.step.model(images)), counter)
            return likely_lengths(sizes)


def best_segment(workload: Workload, batch: int) -> int:
    """How many blocks to recompute together for the lowest peak of backprop; 1 or more."""
    likely = Rehearsal(workload, Strategy.of()).likely_lengths(batch)
    if not likely:
        raise UserError("the model has no chain of blocks that checkpointing could recompute")
    tried = likely[:_CHECKPOINT_TRIALS]
    return min(tried, key=lambda n: Rehearsal(workload, Strategy.of(segment=n)).peak(batch))


def count(step: TrainingStep, batch: int, image: tuple[int, ...]) -> Ledger:
    """Run a step in full swing, on blank images, and count what it takes.

    Under fake tensors or on a device, whichever the step was made for.
    """
    ledger = Ledger(step.phase)
    device = next(step.model.parameters()).device
    with ledger, _gradients_noted(step.trained, ledger):
        for what, tensor in step.standing():
            with ledger.owned_by(what):
                ledger.track([tensor])
        with ledger.owned_by("inputs"):
            images = torch.zeros(batch, *image, device=device)
            targets = torch.zeros(batch, dtype=torch.int64, device=device)
        step.watched = True
        with ledger.watching():
            step.fill_gradients(images, targets)
            with ledger.owned_by("optimizer"):
                step.finish()
        step.watched = False
    return ledger


@contextlib.contextmanager
def _gradients_noted(trained: nn.Module, ledger: Ledger) -> Iterator[None]:
    def note(parameter: Tensor) -> None:
        assert parameter.grad is not None
        ledger.give(parameter.grad, "gradients")

    with contextlib.ExitStack() as stack:
        for parameter in trained.parameters():
            if parameter.requires_grad:
                handle = parameter.register_post_accumulate_grad_hook(note)
                stack.callback(handle.remove)
        yield


def largest_batch(peak: _Peak, budget: int) -> int:
    """The largest batch whose peak, which grows with it, is within the budget; 0 if 2 is not."""
    low, high = 1, _MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if peak(middle) <= budget else (low, middle)
    return low if low > 1 else 0


_MOST = 1 << 30


def peak_by_batch(rehearsal: Rehearsal, batch: int, curve: Sequence[int]) -> _Peak:
    """The peak for any batch, from the curves of three.

    Every tensor's size is a polynomial of the batch, of degree 2 at most (similarities of all
    pairs), and so is every point of the curve.
    """
    first, second, third = (
        np.array(c, dtype=np.float64)
        for c in (curve, rehearsal.run(2 * batch).curve(), rehearsal.run(3 * batch).curve())
    )
    if not len(first) == len(second) == len(third):
        return rehearsal.peak  # the model does not run alike with every batch
    slope, bend = second - first, (third - 2 * second + first) / 2

    def peak(other: int) -> float:
        x = other / batch - 1
        return float(np.max(first + x * slope + x * (x - 1) * bend))

    return peak


def _moment(ledger: Ledger) -> str:
    doing, module = ledger.peak_phase.doing, ledger.peak_phase.module
    texts = {
        "": "optimizer",
        "forward": f"forward {module}",
        "auxiliary": f"auxiliary {module}",
        "carry": f"carry through {module}",
        "complete": f"backward {module}",
    }
    return texts[doing]
