"""The steps of one rank, whatever brings its tensors.

A rank works through its modules and goes to the next batch at once, while cascades that end on
later ranks still hold its last modules. Their gradients are taken in where the next batch needs
these modules, no earlier.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hpff.cutting.part import Part
from hpff.engine.parameters import backbone_parameters
from hpff.engine.partial_step import PartialLosses, PartialStep
from hpff.learner import LocalLearner
from hpff.parallel.neighbors import Neighbors


class RankSteps:
    """Steps of a learner's modules ``part.first`` to ``part.last``, one after the other.

    Args:
        learner: the whole.
        part: this rank's modules.
        waits_for: for each module of the whole the last cascade's end that must be done before
            it runs again.
        neighbors: what brings the tensors of other ranks, and takes them there.
        before: called with j when all else of the step before is done that module j needs before
            it runs.
    """

    def __init__(
        self,
        learner: LocalLearner,
        part: Part,
        waits_for: Sequence[int],
        neighbors: Neighbors,
        before: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._learner = learner
        self._part = part
        self._waits_for = waits_for
        self._neighbors = neighbors
        self._before = before
        self._due = learner.reach.crossing(part.last)
        self._passing = learner.reach.crossing(part.first - 1)
        self._step: PartialStep | None = None
        self._ends: deque[int] = deque()

    def run(
        self,
        inputs: Any,
        targets: Tensor,
        *,
        scale: float | Tensor,
        seed: int,
        on_module_done: Callable[[int], None],
    ) -> PartialLosses:
        """One step; the modules that cascades of later ranks train stay undone.

        Args:
            inputs: what the whole model takes.
            targets: of it.
            scale: factor of every gradient.
            seed: of the step's random numbers.
            on_module_done: called with j when the gradients of module j are final.
        """
        while self._ends and self._ends[0] in self._passing:
            self._carry_on()
        if self._part.is_first:
            torch.manual_seed(seed)
        learner = self._learner
        step = PartialStep(
            learner.model,
            learner.auxiliary_networks,
            learner.reach,
            backbone_parameters(learner.model, learner.partition),
            recompute=learner.settings.recompute,
            kept=learner.kept,
            phase=learner.phase,
            part=self._part,
            enter=self._neighbors.receive_output,
            before=self._catch_up,
            on_crossing=self._neighbors.send_gradient,
        )
        losses, output = step.run_part(inputs, targets, scale, on_module_done)
        if output is not None:
            self._neighbors.send_output(output)
        self._step, self._ends = step, deque(self._due)
        if not self._due:
            step.forget()
        return losses

    def finish(self) -> None:
        """Wait until all modules are done with the last step."""
        while self._ends:
            self._carry_on()

    def _catch_up(self, j: int) -> None:
        """Let the step before be done with what module j needs before it runs."""
        while self._ends and self._ends[0] <= self._waits_for[j - 1]:
            self._carry_on()
        self._before(j)

    def _carry_on(self) -> None:
        """Take the next cascade's gradient that crosses this rank's end in the step before."""
        assert self._step is not None
        end = self._ends.popleft()
        self._step.carry_on(end, self._neighbors.receive_gradient(end))
        if not self._ends:
            self._step.forget()
