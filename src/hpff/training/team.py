"""How a run's steps are shared out over processes: not at all, by modules, or by data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hpff.engine.partial_step import PartialLosses
from hpff.engine.step import Losses
from hpff.learner import LocalLearner
from hpff.parallel import DataParallel, ModuleParallel, module_seconds
from hpff.parallel.grid import grid_groups
from hpff.parallel.states import gather_states
from hpff.torch_support.random_state import step_seed
from hpff.training.optimizer import ModuleOptimizers

State = dict[str, Tensor]


class Alone:
    """One process.

    Args:
        learner: what is trained.
        optimizers: of its modules.
        seed: of the random numbers of steps.

    Attributes:
        is_first: whether this process writes the run's files and shows how it goes.
        weight: of this process's share of the last batch in means over processes: its images over
            their mean number. Shares differ where images were left out.
    """

    is_first = True
    weight = 1.0

    def __init__(self, learner: LocalLearner, optimizers: ModuleOptimizers, seed: int) -> None:
        self.learner = learner
        self.optimizers = optimizers
        self._seed = seed

    def seed_step(self, number: int) -> None:
        """Seed the random numbers of a step of the run, counted from 1."""
        torch.manual_seed(step_seed(self._seed, number))

    def step(self, images: Tensor, targets: Tensor) -> Losses:
        """Train one step; losses and logits that are elsewhere are zero and empty."""
        self.optimizers.zero_grad()
        done = self.optimizers.module_done
        losses = self.learner.backward(images, targets, on_module_done=done)
        self.optimizers.step()
        return losses

    def finish(self) -> None:
        """All modules are done with the last step."""

    def share(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """This process's share of a batch."""
        return images, targets

    def forward(self, images: Tensor) -> Tensor | None:
        """The model's logits; None where they are elsewhere."""
        logits: Tensor = self.learner.model(images)
        return logits

    def add_up(self, means: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """An epoch's means of losses and counts of images, of all processes.

        Args:
            means: of this one, in which each step has its ``weight``.
            counts: of this one.
        """
        return means, counts

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum of all processes' numbers."""
        return numbers

    def largest(self, number: int) -> int:
        """The largest of all processes' numbers."""
        return number

    def tensors(self) -> list[Tensor]:
        """Parameters and buffers that are here."""
        return [*self.learner.parameters(), *self.learner.buffers()]

    def states(self) -> tuple[State, list[Any]]:
        """The whole learner's state, and all optimizers', on the first process.

        Every process must call it.
        """
        return self.learner.state_dict(), self.optimizers.state_dict()

    def load(self, learner: Mapping[str, Tensor], optimizers: list[Any]) -> None:
        """Take back the states."""
        self.optimizers.load_state_dict(optimizers)
        self.learner.load_state_dict(learner)

    def close(self) -> None:
        """The run is over."""


class ByData(Alone):
    """Every process has the whole learner, and a part of each batch.

    Args:
        synchronized: whether BatchNorm normalizes by the whole batch.
    """

    def __init__(
        self, learner: LocalLearner, optimizers: ModuleOptimizers, seed: int, *, synchronized: bool
    ) -> None:
        super().__init__(learner, optimizers, seed)
        self._parallel = DataParallel(
            learner,
            on_reduced=optimizers.module_done,
            batch_norm="synchronized" if synchronized else "own",
        )
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.is_first = self.rank == 0

    def seed_step(self, number: int) -> None:
        torch.manual_seed(step_seed(self._seed + self.rank, number))

    def step(self, images: Tensor, targets: Tensor) -> Losses:
        self.optimizers.zero_grad()
        done = self._parallel.module_done
        losses = self.learner.backward(images, targets, on_module_done=done, scale=self.weight)
        self._parallel.finish()
        self.optimizers.step()
        return losses

    def finish(self) -> None:
        self._parallel.share_buffers()

    def share(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        own, self.weight = _share(self.rank, self.ranks, len(targets))
        return images[own], targets[own]

    def add_up(self, means: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        dist.all_reduce(means)
        dist.all_reduce(counts)
        return means / self.ranks, counts

    def sum(self, numbers: Tensor) -> Tensor:
        dist.all_reduce(numbers)
        return numbers

    def largest(self, number: int) -> int:
        return _largest(number)

    def close(self) -> None:
        self._parallel.close()


class ByModules(Alone):
    """Every process has some modules, and each batch, or with replicas a part of it."""

    def __init__(
        self,
        learner: LocalLearner,
        optimizers: ModuleOptimizers,
        seed: int,
        batch: tuple[Tensor, Tensor],
        device: torch.device,
        timeout: float,
        *,
        replicas: int = 1,
        synchronized: bool = False,
    ) -> None:
        super().__init__(learner, optimizers, seed)
        ranks = dist.get_world_size() // replicas
        self._replica, self._replicas = dist.get_rank() // ranks, replicas
        row, column = grid_groups(ranks, replicas, timeout) if replicas > 1 else (None, None)
        given = self.share(*batch)
        taken = module_seconds(learner, *given, steps=1, optimizer=optimizers.another)
        costs = torch.tensor(taken, dtype=torch.float64)
        dist.broadcast(costs, 0)
        self._parallel = ModuleParallel(
            learner,
            costs=costs.tolist(),
            device=device,
            seed=seed,
            timeout=timeout,
            group=row,
            replicas=column,
            batch_norm="synchronized" if synchronized else "own",
        )
        self._row = row
        self._own = range(self._parallel.first, self._parallel.last + 1)
        self.is_first = dist.get_rank() == 0

    def seed_step(self, number: int) -> None:
        self._parallel.steps = number - 1  # its first rank seeds, and sends the state on

    def step(self, images: Tensor, targets: Tensor) -> Losses:
        done = self.optimizers.module_done
        return self._whole(
            self._parallel.backward(images, targets, on_module_done=done, scale=self.weight)
        )

    def finish(self) -> None:
        self._parallel.finish()
        self._parallel.share_buffers()

    def share(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        own, self.weight = _share(self._replica, self._replicas, len(targets))
        return images[own], targets[own]

    def forward(self, images: Tensor) -> Tensor | None:
        logits: Tensor | None = self._parallel.forward(images)
        return logits

    def add_up(self, means: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        dist.all_reduce(means)
        dist.all_reduce(counts)
        return means / self._replicas, counts

    def sum(self, numbers: Tensor) -> Tensor:
        dist.all_reduce(numbers)
        return numbers

    def largest(self, number: int) -> int:
        return _largest(number)

    def tensors(self) -> list[Tensor]:
        return self._parallel.tensors()

    def states(self) -> tuple[State, list[Any]]:
        whole = self._parallel.state_dict()
        if self._replica:
            return {}, []
        own = self.optimizers.state_dict()
        gathered = gather_states({str(j): own[j - 1] for j in self._own}, self._row)
        if whole is None or gathered is None:
            return {}, []
        found = {int(j): state for states in gathered for j, state in states.items()}
        return whole, [found[j] for j in sorted(found)]

    def load(self, learner: Mapping[str, Tensor], optimizers: list[Any]) -> None:
        self.optimizers.load_state_dict(optimizers, modules=self._own)
        self._parallel.load_state_dict(learner)

    def close(self) -> None:
        self._parallel.close()

    def _whole(self, part: PartialLosses) -> Losses:
        """Losses of all modules, those of others being zero, so that ranks can be added up."""
        learner, networks = self.learner, self.learner.auxiliary_networks
        modules, weights = len(learner.partition), networks.weights
        some = next(iter((*part.independent.values(), *part.cascade.values())), part.final)
        assert some is not None
        zero = torch.zeros_like(some)
        final = zero if part.final is None else part.final
        ends = [j for j, k in enumerate(learner.reach.lengths, start=1) if k > 1 and j < modules]
        independent = [part.independent.get(j, zero) for j in range(1, modules)] + [final]
        cascade = [part.cascade.get(j, zero) for j in ends] + [final]
        if not weights.independent:
            independent = []
        if not weights.cascade:
            cascade = []
        total = zero
        for weight, losses in ((weights.independent, independent), (weights.cascade, cascade)):
            if losses:
                total = total + weight * torch.stack(losses).sum()
        logits = zero.new_empty(0) if part.logits is None else part.logits
        return Losses(final, logits, tuple(independent), tuple(cascade), total)


def _share(own: int, shares: int, batch: int) -> tuple[slice, float]:
    """The places of one of so many shares of a batch, and its weight."""
    places = slice(own, None, shares)
    images = len(range(batch)[places])
    return places, images * shares / batch


def _largest(number: int) -> int:
    found = torch.tensor([number])
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)
