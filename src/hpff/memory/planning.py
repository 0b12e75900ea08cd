"""The peak memory of a training step, without a device and without allocating it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpff import methods as known_methods
from hpff.cutting.local_modules import Partition
from hpff.engine.reach import Cascade
from hpff.engine.recomputation import Recompute
from hpff.errors import UserError
from hpff.memory.ledger import Ledger, Owner
from hpff.memory.rehearsal import Rehearsal, Stage, best_checkpointing
from hpff.memory.steps import Strategy, Workload
from hpff.presets import PRESETS
from hpff.settings import BASELINE, LocalSettings

BEST = -1  # a strategy's segment that is to be found
RECOMPUTED = Strategy.of("bp", recompute="blocks")
"""Backprop's own gradients, bit for bit, in less memory."""
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
        return {
            "workload": {**self.workload.to_plain(), "batch": self.batch},
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
        strategies: how to train; by default ``first_strategies()``. A segment of ``BEST`` is
            found here: the length that takes the least.
        budget: bytes; then each row has its largest batch.
        observe: called with a row's label before its work begins.

    Raises:
        UserError: the model is unknown, does not run on such images or cannot be cut as asked.
    """
    if batch < 2:
        raise UserError(f"batch is {batch}; expected 2 or more, as BatchNorm needs")
    strategies = first_strategies() if strategies is None else strategies
    observe("the cut")
    stage = Stage(workload)
    cut = stage.cut()
    for strategy in strategies:
        k = strategy.settings.cascade
        if isinstance(k, int) and k > len(cut):
            raise UserError(f"cascade is {k}, expected 1 to {len(cut)}, the number of modules")
    rows = []
    for strategy in strategies:
        observe(str(strategy))
        row, partition = _row(stage, strategy, batch, budget)
        rows.append(row)
        cut = partition or cut
    return Plan(workload, batch, budget, cut, tuple(rows))


def first_strategies(*, cascade: Cascade = 2, patches: int = 2) -> list[Strategy]:
    """What to compare first: backprop, and the default method, each also in less memory.

    Args:
        cascade: k of HPFF.
        patches: n of HPFF.
    """
    return default_strategies(["dgl"], cascade=cascade, patches=patches, recompute=["blocks"])


def default_strategies(
    methods: Sequence[str] | None = None,
    *,
    cascade: Cascade = 2,
    patches: int = 2,
    recompute: Sequence[Recompute] = (),
) -> list[Strategy]:
    """Backprop, with and without checkpointing, and each method alone and with HPFF.

    Args:
        methods: names, of presets too, and labels such as "dgl+hilo" (see
            :meth:`hpff.LocalSettings.with_label`); by default all methods that are known.
        cascade: k of HPFF.
        patches: n of HPFF.
        recompute: ways to recompute; each method with HPFF gets one more strategy for each, and
            backprop one by blocks, which lightens a single module most.

    Raises:
        UserError: a method is unknown.
    """
    strategies = [Strategy.of(), Strategy.of(segment=BEST)]
    if "blocks" in recompute:
        strategies.append(RECOMPUTED)
    known = [name for name, _ in known_methods.names()]
    for method in known if methods is None else methods:
        if method in PRESETS:
            strategies.append(Strategy(LocalSettings(**PRESETS[method])))
            continue
        if "+" in method:
            labeled = Strategy.labeled(method, cascade, patches)
        else:
            known_methods.create(method)
            if method == BASELINE:
                continue
            labeled = Strategy.of(method, cascade, patches)
            strategies.append(Strategy.of(method))
        strategies += [labeled, *(labeled.with_settings(recompute=each) for each in recompute)]
    return list({str(strategy): strategy for strategy in strategies}.values())


def _row(
    stage: Stage, strategy: Strategy, batch: int, budget: int | None
) -> tuple[Row, Partition | None]:
    """A row, and the cut with the patches that are in force for it."""
    try:
        if strategy.segment == BEST:
            rehearsal, ledger = best_checkpointing(stage, batch)
        else:
            rehearsal = Rehearsal(stage, strategy)
            ledger = rehearsal.run(batch)
    except UserError as error:
        if str(strategy) == BASELINE:
            raise
        return Row(strategy, fault=str(error)), None
    row = Row(
        strategy=rehearsal.strategy,
        peak=ledger.peak,
        alive=tuple(sorted(ledger.at_peak().items(), key=lambda item: -item[1])),
        moment=_moment(ledger),
        curve=tuple(ledger.curve()),
    )
    if budget is not None:
        largest = largest_batch(peak_by_batch(rehearsal, batch, row.curve), budget)
        row = replace(row, largest_batch=largest)
    return row, rehearsal.step.partition if not strategy.settings.is_backprop else None


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
    alike = len(first) == len(second) == len(third)
    if not alike or rehearsal.strategy.settings.streams > 1:
        return rehearsal.peak  # the model does not run alike, or the curve says too little
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
