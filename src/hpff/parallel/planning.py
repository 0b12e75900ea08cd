"""What each rank of a module-parallel training takes and sends, without a device.

Every rank's steps run under fake tensors, one rank after the other: what other ranks would send is
made on the spot. So its memory is counted to the byte, but for messages that wait: how many these
are depends on how fast ranks are, and only their most is known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hpff.cutting.local_modules import Partition
from hpff.cutting.part import Part, Parts, refused
from hpff.engine.reach import Reach
from hpff.errors import UserError
from hpff.learner import LocalLearner
from hpff.memory.arithmetic import ArithmeticCounter
from hpff.memory.ledger import Ledger, Owner
from hpff.memory.rehearsal import Stage, count, gradients_noted
from hpff.memory.repeats import Repeats
from hpff.memory.steps import Strategy, TrainingStep, Workload
from hpff.parallel.groups import check_enough, check_shareable, groups_of, owned_by
from hpff.parallel.messages import MOST_RECEIVED, MOST_SENT
from hpff.parallel.metering import costs_of, metered
from hpff.parallel.ownership import Ownership
from hpff.parallel.pipelines import Cost, Local, local_work, seconds_a_step
from hpff.parallel.rank_steps import RankSteps


@dataclass(frozen=True)
class RankRow:
    """One rank.

    Attributes:
        first, last: its modules, from 1.
        peak: bytes of all tensors at the worst moment of a step, if messages come in time.
        alive: these bytes by owner.
        waiting: the most bytes of messages that may wait besides to be taken, here or there.
        sends_on: bytes a step of outputs to the next rank.
        sends_back: bytes a step of cascades' gradients to the rank before.
        arithmetic: multiplications and additions of its modules in a step.
    """

    first: int
    last: int
    peak: int
    alive: tuple[tuple[Owner, int], ...]
    waiting: int
    sends_on: int
    sends_back: int
    arithmetic: float

    def alive_of(self, *what: str) -> int:
        """Bytes at the peak that belong to these kinds of owners."""
        return sum(size for owner, size in self.alive if owner.what in what)


@dataclass(frozen=True)
class RanksPlan:
    """A workload whose modules are shared out over ranks, beside one process.

    Attributes:
        strategy: how the network is trained.
        reach: how far its cascades go.
        costs: of each module, in arithmetic.
        alone: bytes that one process takes at the worst moment of a step.
        speedup: throughput over one process in the steady state, if time goes with arithmetic
            and links are fast.
    """

    workload: Workload
    batch: int
    strategy: Strategy
    partition: Partition
    reach: Reach
    costs: tuple[Cost, ...]
    rows: tuple[RankRow, ...]
    alone: int
    speedup: float

    def to_plain(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "workload": {**self.workload.to_plain(), "batch": self.batch},
            "strategy": {"label": str(self.strategy), **self.strategy.to_plain()},
            "one_process_peak_bytes": self.alone,
            "throughput_over_one_process": self.speedup,
            "ranks": [
                {
                    "rank": rank,
                    "first_module": row.first,
                    "last_module": row.last,
                    "peak_bytes": row.peak,
                    "waiting_bytes_at_most": row.waiting,
                    "sent_on_bytes": row.sends_on,
                    "sent_back_bytes": row.sends_back,
                    "arithmetic": row.arithmetic,
                    "alive": [
                        {"what": owner.what, "module": owner.module, "bytes": size}
                        for owner, size in row.alive
                    ],
                }
                for rank, row in enumerate(self.rows)
            ],
        }


def plan_ranks(
    workload: Workload,
    *,
    batch: int,
    strategy: Strategy,
    ranks: int,
    sizes: Sequence[int] | None = None,
    observe: Callable[[str], None] = lambda _: None,
) -> RanksPlan:
    """What each of several ranks takes and sends in a step of module-parallel training.

    Modules are shared out by arithmetic; a training shares them out by measured time.

    Args:
        workload: what is trained, and on what; modules are stepped one by one whatever it says.
        batch: images in a batch; every rank has the whole one.
        strategy: of local learning.
        ranks: 2 to the number of modules.
        sizes: how many modules each rank has; None: shared out by arithmetic.
        observe: called with a few words before each piece of work.

    Raises:
        UserError: the modules cannot be on several ranks; as ``hpff.memory.plan``.
    """
    if batch < 2:
        raise UserError(f"batch is {batch}; expected 2 or more, as BatchNorm needs")
    if ranks < 2:
        raise UserError(f"ranks is {ranks}; expected 2 or more")
    if strategy.settings.is_backprop:
        raise UserError("backprop has one module; name a method of local learning")
    observe("one process")
    workload = replace(workload, step_per_module=True)
    stage = Stage(workload)
    step = stage.step(strategy)
    learner = step.trained
    assert isinstance(learner, LocalLearner)
    check_shareable(learner)
    check_enough(ranks, learner)
    alone, costs = _one_process(stage, step, learner, batch)
    arithmetic = local_work(costs, learner.reach)
    sizes = groups_of(learner.partition, ranks, sizes, costs=arithmetic)
    rehearsal = _Rehearsal(stage, step, learner, sizes, batch)
    rows = []
    for rank in range(ranks):
        observe(f"rank {rank}")
        first, last = owned_by(sizes, rank)
        rows.append(replace(rehearsal.row(rank), arithmetic=sum(arithmetic[first - 1 : last])))
    whole, shared = (Local(costs, each, learner.reach).works for each in ([len(costs)], sizes))
    return RanksPlan(
        workload=workload,
        batch=batch,
        strategy=strategy,
        partition=learner.partition,
        reach=learner.reach,
        costs=tuple(costs),
        rows=tuple(rows),
        alone=alone.peak,
        speedup=seconds_a_step(whole) / seconds_a_step(shared),
    )


def _one_process(
    stage: Stage, step: TrainingStep, learner: LocalLearner, batch: int
) -> tuple[Ledger, list[Cost]]:
    """What a step of one process takes, and the arithmetic of each module."""
    with stage.entered(), ArithmeticCounter() as counter:
        with metered(learner, lambda: float(counter.total)) as meter:
            step.phase = meter
            ledger = count(step, batch, stage.workload.image, stage.known)
        step.phase = learner.phase
    return ledger, costs_of(meter.amounts, learner.partition, learner.reach)


@dataclass
class _Made:
    """Neighbors that are not there: what they would send is made, of the right size.

    Attributes:
        given: what the rank's modules begin from, and what gradients at its end look like.
        sent_on, sent_back: bytes of each message.
    """

    ledger: Ledger
    begins: tuple[tuple[int, ...], torch.dtype] | None
    ends: tuple[tuple[int, ...], torch.dtype] | None
    sent_on: list[int] = field(default_factory=list)
    sent_back: list[int] = field(default_factory=list)

    def receive_output(self) -> Tensor:
        assert self.begins is not None
        with self.ledger.owned_by("inputs"):
            return torch.empty(self.begins[0], dtype=self.begins[1])

    def send_output(self, output: Tensor) -> None:
        self.sent_on.append(output.nbytes)
        self.ends = tuple(output.shape), output.dtype

    def receive_gradient(self, end: int) -> Tensor:
        assert self.ends is not None
        with self.ledger.owned_by("cotangents"):
            return torch.empty(self.ends[0], dtype=self.ends[1])

    def send_gradient(self, end: int, gradient: Tensor) -> None:
        self.sent_back.append(gradient.nbytes)


class _Rehearsal:
    """The ranks' steps under fake tensors, from the first rank to the last."""

    def __init__(
        self,
        stage: Stage,
        step: TrainingStep,
        learner: LocalLearner,
        sizes: list[int],
        batch: int,
    ) -> None:
        self._stage = stage
        self._step = step
        self._learner = learner
        self._sizes = sizes
        self._batch = batch
        with stage.entered():
            self._parts = Parts(learner.model, learner.partition, learner.example)
            self._owners = Ownership(learner, self._parts.buffer_modules())
        self._owners.check(sizes)
        self._begins: tuple[tuple[int, ...], torch.dtype] | None = None

    def row(self, rank: int) -> RankRow:
        """One rank's; to be called with each in order. Its arithmetic is left open."""
        first, last = owned_by(self._sizes, rank)
        part = self._parts.untried(first, last)
        ledger = Ledger(self._learner.phase)
        made = _Made(ledger, self._begins, None)
        steps = RankSteps(self._learner, part, self._owners.waits_for(), made)
        with self._counting(ledger, first, last), torch.random.fork_rng(devices=[]):
            try:
                self._run(steps, ledger)
            except UserError:
                raise
            except Exception as error:
                raise refused(part, " ".join(str(error).split())[:200]) from error
            peak, alive = ledger.peak, ledger.at_peak()
            steps.finish()
        arrives = _bytes(self._begins), _bytes(made.ends)
        self._begins = made.ends
        return RankRow(
            first=first,
            last=last,
            peak=peak,
            alive=tuple(sorted(alive.items(), key=lambda item: -item[1])),
            waiting=self._waiting(part, made, *arrives),
            sends_on=made.sent_on[-1] if made.sent_on else 0,
            sends_back=sum(made.sent_back) // 2,
            arithmetic=0,
        )

    def _run(self, steps: RankSteps, ledger: Ledger) -> None:
        """Two steps: the first leaves behind what the second finds."""
        for number in (1, 2):
            with ledger.owned_by("inputs"):
                images = torch.zeros(self._batch, *self._stage.workload.image)
                targets = torch.zeros(self._batch, dtype=torch.int64)
            watched = ledger.watching() if number == 2 else contextlib.nullcontext()
            with watched, self._step.autocast(images.device):
                self._run_step(steps, images, targets)

    def _run_step(self, steps: RankSteps, images: Tensor, targets: Tensor) -> None:
        done = self._step.step_module
        steps.run(images, targets, scale=1.0, seed=0, on_module_done=done)

    @contextlib.contextmanager
    def _counting(self, ledger: Ledger, first: int, last: int) -> Iterator[None]:
        """Inside, tensors are fake, and the ledger counts them and what the rank owns."""
        phase, known = self._learner.phase, self._stage.known
        phase.instead = None if known is None else Repeats(ledger, known)
        with self._stage.entered(), ledger, gradients_noted(self._learner, ledger):
            hollow = self._track(ledger, first, last)
            yield
        del hollow
        phase.instead = None

    def _track(self, ledger: Ledger, first: int, last: int) -> list[Tensor]:
        """Count what stands on a rank; gives what stands for the parameters of others."""
        hollow = []
        for j, parameters in enumerate(self._learner.module_parameters, start=1):
            if not first <= j <= last:
                with ledger.owned_by("parameters"):
                    hollow += [torch.empty((), dtype=p.dtype) for p in parameters]
                continue
            states = self._step.optimizers[j - 1].state.values()
            held = [t for state in states for t in state.values() if isinstance(t, Tensor)]
            with ledger.owned_by("parameters"):
                ledger.track(parameters)
            with ledger.owned_by("optimizer"):
                ledger.track(held)
        with ledger.owned_by("buffers"):
            ledger.track(self._learner.buffers())
        return hollow

    def _waiting(self, part: Part, made: _Made, output: int, gradient: int) -> int:
        """The most bytes of messages that wait, those that were sent included."""
        reach, sent = self._learner.reach, 0
        for messages in (made.sent_on, made.sent_back):
            sent += MOST_SENT * max(messages, default=0)
        # Where a cascade comes back, the rank before is one batch ahead at most.
        outputs = 1 if reach.crossing(part.first - 1) else MOST_RECEIVED
        gradients = len(reach.crossing(part.last))
        return sent + outputs * output + gradients * gradient


def _bytes(look: tuple[tuple[int, ...], torch.dtype] | None) -> int:
    return 0 if look is None else torch.Size(look[0]).numel() * look[1].itemsize
