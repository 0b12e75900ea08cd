"""Training steps without memory: under fake tensors, which have a shape and nothing else."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from hpff.cutting.balance import Balance
from hpff.cutting.local_modules import Partition
from hpff.cutting.trace import Traces, traces_kept
from hpff.engine.streams import streams_on
from hpff.errors import UserError
from hpff.memory.arithmetic import ArithmeticCounter
from hpff.memory.checkpointing import Block, block_bytes, chain, likely_lengths, segments_of
from hpff.memory.counting import AllocationCounter
from hpff.memory.ledger import Ledger
from hpff.memory.optimizer_repeats import OptimizerRepeats, fill_states
from hpff.memory.planned_streams import planned_streams
from hpff.memory.repeats import Known, Repeats
from hpff.memory.steps import Strategy, TrainingStep, Workload, take_whole_step
from hpff.torch_support.fake_tensors import FakeTensors, fake_model

_CHECKPOINT_TRIALS = 3


class Stage:
    """A workload's model under fake tensors, on which strategies are rehearsed one after another.

    Args:
        remembers: whether what would happen again is remembered: the model's trace, and what
            operations give by the shapes that they are given.
    """

    def __init__(self, workload: Workload, *, remembers: bool = True) -> None:
        self.workload = workload
        self._remembers = remembers
        self._traces: Traces = {}
        self.known: Known | None = {} if remembers else None
        self._mode = FakeTensors(remembers=remembers)
        self._model = fake_model(workload.build, self._mode)
        self._runs: list[list[Block]] | None = None
        self._backprop: TrainingStep | None = None

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Inside, tensors are fake."""
        traces = traces_kept(self._traces) if self._remembers else contextlib.nullcontext()
        with self._mode, traces:
            yield

    def with_cut(self, modules: int, balance: Balance) -> Stage:
        """The same model on the same stage, cut otherwise."""
        other = copy.copy(self)
        other.workload = replace(self.workload, modules=modules, balance=balance)
        other._backprop = None
        return other

    def cut(self) -> Partition:
        """The model's local modules."""
        with self.entered():
            return self.workload.cut(self._model.train(), torch.zeros(2, *self.workload.image))

    def step(self, strategy: Strategy) -> TrainingStep:
        """The model trained by a strategy."""
        with self.entered():
            first = fill_states if self._remembers else take_whole_step
            if not (self._remembers and strategy.is_plain_backprop):
                return TrainingStep(self._model, self.workload, strategy, first_step=first)
            if self._backprop is None:
                plain = Strategy.of()
                self._backprop = TrainingStep(self._model, self.workload, plain, first_step=first)
            segments = segments_of(self.runs(), strategy.segment) if strategy.segment else ()
            return self._backprop.recomputing(segments)

    def runs(self) -> list[list[Block]]:
        """The blocks that checkpointing could recompute together."""
        if self._runs is None:
            with self.entered():
                found = chain(self._model.train(), torch.zeros(2, *self.workload.image))
            if not self._remembers:
                return found
            self._runs = found
        return self._runs

    def likely_lengths(self, batch: int) -> list[int]:
        """Lengths of checkpointed segments, the most promising first."""
        runs = self.runs()
        with self.entered(), AllocationCounter() as counter:
            images = torch.empty(batch, *self.workload.image)
            kept = []
            sizes = block_bytes(runs, lambda: kept.append(self._model(images)), counter)
            return likely_lengths(sizes)


class Rehearsal:
    """A training step without memory.

    Args:
        stage: the workload's, or the workload itself.
    """

    def __init__(self, stage: Stage | Workload, strategy: Strategy) -> None:
        self._stage = stage if isinstance(stage, Stage) else Stage(stage)
        self.strategy = strategy
        self.step = self._stage.step(strategy)

    def run(self, batch: int) -> Ledger:
        """What a step on a batch takes."""
        with self._stage.entered():
            return count(self.step, batch, self._stage.workload.image, self._stage.known)

    def peak(self, batch: int) -> int:
        """Bytes at the worst moment of a step on a batch."""
        return self.run(batch).peak

    def cost(self, batch: int) -> tuple[int, int]:
        """Bytes at the worst moment of a step, and its arithmetic."""
        with self._stage.entered(), ArithmeticCounter() as counter:
            peak = self.run(batch).peak
        return peak, counter.total


def best_checkpointing(stage: Stage, batch: int) -> tuple[Rehearsal, Ledger]:
    """Backprop with as many blocks recomputed together as take the least, and what it takes.

    Raises:
        UserError: the model has no such blocks.
    """
    likely = stage.likely_lengths(batch)
    if not likely:
        raise UserError("the model has no chain of blocks that checkpointing could recompute")
    tried = [
        Rehearsal(stage, Strategy.of(segment=length)) for length in likely[:_CHECKPOINT_TRIALS]
    ]
    return min(((each, each.run(batch)) for each in tried), key=lambda one: one[1].peak)


def count(
    step: TrainingStep, batch: int, image: tuple[int, ...], known: Known | None = None
) -> Ledger:
    """Run a step in full swing, on blank images, and count what it takes.

    Under fake tensors or on a device, whichever the step was made for.

    Args:
        step: to run.
        batch: how many images.
        image: shape (C, H, W) of one.
        known: under fake tensors, what local losses take; more is added. None: all are computed.
    """
    ledger = Ledger(step.phase)
    step.phase.instead = None if known is None else Repeats(ledger, known)
    step.take_step = take_whole_step if known is None else OptimizerRepeats(ledger)
    if FakeTensors.active() is not None:
        step.phase.streams_on = partial(planned_streams, ledger)
    device = next(step.model.parameters()).device
    with ledger, gradients_noted(step.trained, ledger):
        for what, tensor in step.standing():
            with ledger.owned_by(what):
                ledger.track([tensor])
        with ledger.owned_by("inputs"):
            images = torch.zeros(batch, *image, device=device)
            targets = torch.zeros(step.targets_of(batch), dtype=torch.int64, device=device)
        step.watched = True
        with ledger.watching():
            step.fill_gradients(images, targets)
            with ledger.owned_by("optimizer"):
                step.finish()
        step.watched = False
    step.phase.instead, step.take_step = None, take_whole_step
    step.phase.streams_on = streams_on
    return ledger


@contextlib.contextmanager
def gradients_noted(trained: nn.Module, ledger: Ledger) -> Iterator[None]:
    """Inside, a gradient that is final is a gradient in the ledger, whatever made it."""

    def note(parameter: Tensor) -> None:
        assert parameter.grad is not None
        ledger.give(parameter.grad, "gradients")

    with contextlib.ExitStack() as stack:
        for parameter in trained.parameters():
            if parameter.requires_grad:
                handle = parameter.register_post_accumulate_grad_hook(note)
                stack.callback(handle.remove)
        yield
