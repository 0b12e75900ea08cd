"""Local modules on several ranks, in a pipeline without micro-batches, flushes or stale weights.

A rank owns a run of adjacent modules. It works through batch t, sends its last output on and goes
to batch t+1 at once: the weights of its modules are stepped as each is done. What comes back over
a boundary is the gradient of a cascade that crosses it, which is needed when batch t+1 reaches the
modules before the boundary, and was sent when the next rank had run the cascade's last module.

Several such rows of ranks may train one learner, each with its share of a batch: a module's
gradients are averaged over the ranks that own it as soon as it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from hpff.cutting.part import Parts
from hpff.engine.arguments import check_inputs
from hpff.engine.partial_step import PartialLosses
from hpff.errors import UserError
from hpff.learner import LocalLearner
from hpff.parallel.agreement import check_same, described, refused_together
from hpff.parallel.data_parallel import BUCKET_BYTES, BatchNormStatistics, DataParallel
from hpff.parallel.grid import rows_of
from hpff.parallel.groups import check_enough, check_shareable, groups_of, owned_by
from hpff.parallel.neighbors import Connections, Neighbors
from hpff.parallel.ownership import Ownership
from hpff.parallel.rank_steps import RankSteps
from hpff.parallel.sent_batches import SentBatches
from hpff.parallel.states import gather_states
from hpff.torch_support.model_io import tensors_in
from hpff.torch_support.random_state import step_seed


class ModuleParallel:
    """This rank's part of a learner whose modules are shared out over the ranks of a group.

    Every rank builds the same learner, on the CPU, and gives each step the same batch (or the first
    rank alone: ``batches="sent"``); what it does not own is then let go of. Gradients, weights and
    statistics are those of one process that calls
    ``torch.manual_seed(hpff.parallel.step_seed(seed, t))`` before its step t = 1, 2, ...: on a CPU
    to the bit.

    Args:
        learner: the whole; only this rank's modules are kept, on ``device``.
        sizes: how many modules each rank owns; None: so that the costliest rank costs the least.
        costs: of each module, where ``sizes`` is None; by default the bytes that it saves. See
            :func:`hpff.parallel.module_seconds` for the time that each takes.
        device: of this rank's modules; None: where they are.
        seed: of the random numbers of steps (dropout).
        timeout: seconds that this rank waits for another before it gives up.
        batches: "drawn" by every rank, or "sent" by the first: where they cannot be drawn twice.
        group: the ranks that share the modules out, a row of a grid; None: all. Every process
            must build its own at once.
        replicas: the ranks that own the same modules in other rows, a column of the grid. Each row
            gives its steps its share of a batch, and starts from the first row's weights;
            ``on_module_done`` is called when a module's gradients are the mean of all rows'.
        bucket_bytes: small modules are averaged together until they have so many; None: about a
            quarter of this rank's, 4 MiB at most.
        batch_norm: "own": by a row's share of the batch; or "synchronized": by all rows' shares
            together, as in :class:`~hpff.parallel.DataParallel`; only with ``replicas``.

    Attributes:
        rank, ranks: this rank's number in its row, and how many these are.
        first, last: the modules of this rank, from 1.
        steps: how many were begun; set it to go on with a run.
        connections: to the ranks beside this one.

    Raises:
        UserError: the task is a segmentation; the method follows the next blocks; there is no
            process group, or too large a one; the model's modules cannot run alone; a parameter is
            used by modules of two ranks; ranks have different learners; the groups are no grid.
    """

    def __init__(
        self,
        learner: LocalLearner,
        *,
        sizes: Sequence[int] | None = None,
        costs: Sequence[float] | None = None,
        device: torch.device | str | None = None,
        seed: int = 0,
        timeout: float = 600.0,
        batches: Literal["drawn", "sent"] = "drawn",
        group: dist.ProcessGroup | None = None,
        replicas: dist.ProcessGroup | None = None,
        bucket_bytes: int | None = None,
        batch_norm: BatchNormStatistics = "own",
    ) -> None:
        _check_group(learner, group)
        if batch_norm == "synchronized" and replicas is None:
            raise UserError(
                "batch_norm is 'synchronized', but without replicas every batch is whole; expected "
                "'own', or replicas"
            )
        rows = rows_of(group, replicas)
        self.learner = learner
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        self._group = group
        self._replica = 0 if replicas is None else dist.get_rank(replicas)
        self.sizes = groups_of(learner.partition, self.ranks, sizes, costs)
        check_same("learners", f"{described(learner)} {self.sizes} {batches} {batch_norm}")
        self.first, self.last = owned_by(self.sizes, self.rank)
        self.device = torch.device(device or learner.partition[0].device)
        self.steps = 0
        self._seed = seed + self._replica
        with refused_together():
            parts = Parts(learner.model, learner.partition, learner.example)
            self._part = parts.part(self.first, self.last)
            self._owners = Ownership(learner, parts.buffer_modules())
            self._owners.check(self.sizes)
            self._owners.keep(self.first, self.last, self.device)
        tensors = len(list(tensors_in(learner.example))) + 1 if batches == "sent" else 0
        self.connections = self._connect(timeout, rows, tensors)
        self._sent: SentBatches | None = None
        if batches == "sent":
            is_first = self._part.is_first
            self._sent = SentBatches(self.connections, learner.example, is_first=is_first)
        self._averages = self._averages_over(replicas, bucket_bytes, batch_norm)
        self._then: dict[int, Callable[[int], None]] = {}
        self._needed = self._needed_before()
        self._steps = self._steps_by(self.connections)

    def backward(
        self,
        inputs: Any,
        targets: Tensor | None,
        *,
        on_module_done: Callable[[int], None] | None,
        scale: float | Tensor = 1.0,
    ) -> PartialLosses:
        """This rank's share of a step; it may end before its last modules are done.

        Args:
            inputs: what the whole model takes: the same on every rank, of the example's sizes but
                for the batch; None where they are sent here.
            targets: as for the learner's ``backward``; likewise.
            on_module_done: called with j once the gradients of module j are final, perhaps during
                the next step or in ``finish``. It must use them up: step the module's optimizer,
                and free them. See ``module_parameters``. None: gradients wait for the next batch's,
                which are added.
            scale: factor of every gradient.

        Raises:
            UserError: as the learner's ``backward``; another rank is gone, or does not answer.
        """
        if self._sent:
            inputs, targets = self._sent.take(inputs, targets)
        assert targets is not None
        check_inputs(inputs)
        self._check_sizes(inputs)
        torch.clear_autocast_cache()
        self.steps += 1
        with self.learner.around_step():
            losses = self._steps.run(
                inputs,
                targets,
                scale=scale,
                seed=step_seed(self._seed, self.steps),
                on_module_done=self._averaged(on_module_done),
            )
        if self._averages:
            self._averages.send()
        return losses

    def finish(self) -> None:
        """Wait until all modules of this rank are done with the last step."""
        with self.learner.around_step():
            self._steps.finish()
        if self._averages:
            self._averages.finish()

    def share_buffers(self) -> None:
        """Take the first row's buffers, such as the running statistics of BatchNorm.

        Every rank must call it, before a checkpoint or an evaluation; alone in its column, a rank
        has nothing to take.
        """
        if self._averages:
            self._averages.share_buffers()

    @torch.no_grad()
    def forward(self, inputs: Any) -> Any:
        """This rank's share of the model itself, in the mode that it is in.

        Returns:
            What the model returns, on the last rank; None on the others.
        """
        self.finish()
        if self._sent:
            inputs, _ = self._sent.take(inputs, None, with_targets=False)
        self._check_sizes(inputs)
        output = self._part.run(self.learner.model, inputs, self.connections.receive_output)
        if self._part.is_last:
            return output
        self.connections.send_output(output.detach())
        return None

    @property
    def module_parameters(self) -> dict[int, list[torch.nn.Parameter]]:
        """The parameters of this rank's modules, by module."""
        everything = self.learner.module_parameters
        return {j: everything[j - 1] for j in range(self.first, self.last + 1)}

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The parameters of this rank's modules."""
        for parameters in self.module_parameters.values():
            yield from parameters

    def tensors(self) -> list[Tensor]:
        """Parameters and buffers of this rank's modules."""
        entries = self.learner.state_dict()
        return [entries[name] for name in self._owners.names(self.first, self.last)]

    def state_dict(self) -> dict[str, Tensor] | None:
        """The whole learner's, on the CPU of the first rank of (the first of several) rows.

        None elsewhere. Every rank must call it.
        """
        self.finish()
        if self._replica:
            return None
        states = gather_states(self._owners.state(self.first, self.last), self._group)
        if states is None:
            return None
        found = {name: value for state in states for name, value in state.items()}
        return {name: found[name] for name in self.learner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take this rank's modules from the whole learner's state.

        Every rank must call it: the last step ends first, so that it steps nothing afterwards.
        """
        self.finish()
        self._owners.load(state, self.first, self.last)

    def close(self) -> None:
        """Nothing comes any more; every rank must call it, before its group is destroyed."""
        self.finish()
        self.connections.close()
        if self._averages:
            self._averages.close()

    def _averages_over(
        self, replicas: Any, bucket_bytes: int | None, batch_norm: BatchNormStatistics
    ) -> DataParallel | None:
        """What averages the gradients of this rank's modules over a column."""
        if replicas is None:
            return None
        own = sum(p.nbytes for p in self.parameters() if p.requires_grad)
        return DataParallel(
            self.learner,
            on_reduced=lambda j: self._then.pop(j)(j),
            bucket_bytes=bucket_bytes or min(BUCKET_BYTES, own // 4),
            group=replicas,
            modules=range(self.first, self.last + 1),
            batch_norm=batch_norm,
        )

    def _averaged(self, then: Callable[[int], None] | None) -> Callable[[int], None]:
        """What is called when a module is done in this row."""
        averages = self._averages
        if then is None or averages is None:
            return then or (lambda _: None)

        def done(j: int) -> None:
            self._then[j] = then
            averages.module_done(j)

        return done

    def _needed_before(self) -> dict[int, list[int]]:
        """For each module those whose last step must be averaged before it runs again."""
        ends, waits_for = self.learner.reach.last_use, self._owners.waits_for()
        own = range(self.first, self.last + 1)
        return {j: [i for i in own if ends[i - 1] <= waits_for[j - 1]] for j in own}

    def _wait_for_rows(self, j: int) -> None:
        if self._averages:
            self._averages.wait_for(self._needed[j])

    def _connect(
        self, timeout: float, rows: Sequence[Sequence[int]], batch_tensors: int
    ) -> Connections:
        """Meet the ranks beside this one, which send so many tensors of a batch."""
        a_step = 1 + batch_tensors, len(self.learner.reach.crossing(self.last))
        return Connections(self.first, self.device, timeout, rows, a_step)

    def _steps_by(self, neighbors: Neighbors) -> RankSteps:
        waits_for = self._owners.waits_for()
        return RankSteps(self.learner, self._part, waits_for, neighbors, self._wait_for_rows)

    def _check_sizes(self, inputs: Any) -> None:
        expected = [(p, tuple(t.shape[1:])) for p, t in tensors_in(self.learner.example)]
        found = [(p, tuple(t.shape[1:])) for p, t in tensors_in(inputs)]
        if [shape for _, shape in found] != [shape for _, shape in expected]:
            raise UserError(
                "a step on several ranks takes inputs of the example's sizes, the batch apart: "
                f"expected {_shapes(expected)}, found {_shapes(found)}"
            )


def _shapes(sizes: Sequence[tuple[Any, tuple[int, ...]]]) -> str:
    return ", ".join("×".join(("B", *map(str, shape))) for _, shape in sizes)


def _check_group(learner: LocalLearner, group: dist.ProcessGroup | None) -> None:
    several = dist.is_initialized()
    with refused_together() if several else nullcontext():
        check_shareable(learner)
        if not several:
            raise UserError(
                "there is no process group: call torch.distributed.init_process_group first, in "
                "processes started by torchrun, or let `hpff train RECIPE parallel=modules` start "
                "them"
            )
        check_enough(dist.get_world_size(group), learner)
