"""Measured throughput of local learning on several processes over one, and memory as planned."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy

from hpff.errors import UserError
from hpff.learner import OWN_HEAD_WEIGHT, LocalLearner
from hpff.memory import Strategy, Workload, plan
from hpff.memory.rehearsal import Stage
from hpff.memory.steps import OPTIMIZERS, TrainingStep
from hpff.parallel import racing
from hpff.parallel.groups import check_enough, check_shareable
from hpff.parallel.module_parallel import ModuleParallel
from hpff.parallel.planning import plan_ranks
from hpff.parallel.racing import Course, Racer
from hpff.parallel.timing import module_seconds
from hpff.torch_support.model_io import outputs_of

How = Literal["modules", "data"]
HOW = ("modules", "data")
STEPS = 4  # of each training in a round, after one that fills the pipeline


@dataclass(frozen=True)
class RanksRow:
    """A training, by one process or by all.

    Attributes:
        training: by its method.
        name: the same, and by how many.
        processes: that take part.
        images: of all processes in a step.
        seconds: of a step, in each round.
        over_one: in each round its throughput over that of one process.
        peaks: bytes of each process at the worst moment of a step, as planned.
    """

    training: str
    name: str
    processes: int
    images: int
    seconds: tuple[float, ...]
    over_one: tuple[float, ...]
    peaks: tuple[int, ...] = ()

    @property
    def step_seconds(self) -> float:
        """The median."""
        return statistics.median(self.seconds)

    @property
    def images_per_second(self) -> float:
        """By the median step."""
        return self.images / self.step_seconds

    @property
    def speedup(self) -> float:
        """The median of the rounds' own."""
        return statistics.median(self.over_one)

    def to_plain(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "training": self.training,
            "name": self.name,
            "processes": self.processes,
            "images_per_step": self.images,
            "step_seconds": self.step_seconds,
            "images_per_second": self.images_per_second,
            "throughput_over_one_process": self.speedup,
            "seconds": self.seconds,
            "planned_peak_bytes": self.peaks,
        }


@dataclass(frozen=True)
class RanksBench:
    """Trainings side by side.

    Attributes:
        batch: of one process, and of each rank with data shared out.
        how: what is shared out over the ranks.
        threads: of each process.
        sizes: how many modules each rank has.
        modules: of the whole.
    """

    workload: Workload
    batch: int
    strategy: Strategy
    how: How
    threads: int
    sizes: tuple[int, ...]
    modules: int
    rows: tuple[RanksRow, ...]

    def to_plain(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "workload": {**self.workload.to_plain(), "batch": self.batch},
            "strategy": {"label": str(self.strategy), **self.strategy.to_plain()},
            "parallel": self.how,
            "threads_of_a_process": self.threads,
            "modules_of_ranks": self.sizes,
            "rows": [row.to_plain() for row in self.rows],
        }


def check_ranks(workload: Workload, strategy: Strategy, how: How, ranks: int) -> None:
    """Refuse what cannot be measured, before any process starts.

    Raises:
        UserError: there is something.
    """
    if ranks < 2:
        raise UserError(f"ranks is {ranks}; expected 2 or more")
    if strategy.settings.is_backprop:
        raise UserError("backprop is measured beside; name a method of local learning")
    learner = Stage(workload).step(strategy).trained
    assert isinstance(learner, LocalLearner)
    if learner.task != "classification":
        raise UserError("several ranks are for classification so far; give a model for that")
    if how == "modules":
        check_shareable(learner)
        check_enough(ranks, learner)


def bench_ranks(
    workload: Workload,
    *,
    batch: int,
    strategy: Strategy,
    how: How,
    rounds: int,
    observe: Callable[[str], None] = lambda _: None,
) -> RanksBench:
    """Time steps of local learning on all ranks, on one, and of backprop on one, in turns.

    Every rank must call it. A step includes the optimizer. Of a data-parallel training each rank
    has a batch as large as that of one process.

    Args:
        workload: what is trained, and on what; modules are stepped one by one whatever it says.
        batch: images in a batch of one process, 2 or more.
        strategy: of local learning.
        how: what is shared out.
        rounds: in which each has its turn.
        observe: called before each piece of work.
    """
    workload = replace(workload, step_per_module=True)
    torch.manual_seed(0)
    shape = batch, *workload.image
    batch_of_one = torch.rand(shape), torch.randint(workload.num_classes, (batch,))
    racers, sizes, close = _racers(workload, strategy, how, *batch_of_one)
    modules = sizes[0] if how == "data" else sum(sizes)
    times = racing.race(racers, steps=STEPS, rounds=rounds, observe=observe)
    close()
    ranks = dist.get_world_size()
    rows = []
    for name, seconds in times.items():
        training, _, by = name.partition(", ")
        processes = 1 if by == _ONE else ranks
        images = batch * (processes if by == _DATA else 1)
        base = times[f"{training}, {_ONE}"]
        pairs = zip(seconds, base, strict=True)
        ratios = tuple(images / batch * one / each for each, one in pairs)
        rows.append(RanksRow(training, name, processes, images, tuple(seconds), ratios))
    threads = torch.get_num_threads()
    return RanksBench(workload, batch, strategy, how, threads, tuple(sizes), modules, tuple(rows))


_ONE, _MODULES, _DATA = "one process", "modules shared out", "data shared out"


def _racers(
    workload: Workload, strategy: Strategy, how: How, images: Tensor, targets: Tensor
) -> tuple[dict[str, Racer], Sequence[int], Callable[[], None]]:
    """What is timed, by name; how many modules each rank has; what ends it."""
    label = str(strategy)
    steps = [_step(workload, each) for each in (Strategy.of("bp"), strategy, strategy)]
    backprop, local, shared = (step.trained for step in steps)
    assert isinstance(local, LocalLearner)
    assert isinstance(shared, LocalLearner)
    course = Course(
        images,
        targets,
        lambda parameters: OPTIMIZERS[workload.optimizer]([{"params": list(parameters)}]),
        _loss,
        lambda: steps[0].autocast(images.device),
    )
    racers = {
        f"bp, {_ONE}": racing.alone(racing.backprop_step(backprop, course)),
        f"{label}, {_ONE}": racing.alone(racing.local_step(local, course)),
    }
    if how == "data":
        racers[f"{label}, {_DATA}"] = racing.local_by_data(shared, course)
        wrapped = _step(workload, Strategy.of("bp")).model
        racers[f"bp, {_DATA}"] = racing.backprop_by_data(wrapped, course)
        return racers, [len(shared.partition)] * dist.get_world_size(), lambda: None
    with course.autocast():
        seconds = module_seconds(local, images, targets, optimizer=course.make)
    costs = torch.tensor(seconds, dtype=torch.float64)
    dist.broadcast(costs, 0)
    ranks = ModuleParallel(shared, costs=costs.tolist())
    racers[f"{label}, {_MODULES}"] = racing.local_by_modules(ranks, course)
    return racers, ranks.sizes, ranks.close


def _step(workload: Workload, strategy: Strategy) -> TrainingStep:
    """A training, the same on every rank; its optimizers are made by the race."""
    torch.manual_seed(0)
    step = TrainingStep(workload.build(), workload, strategy)
    step.optimizers = []
    return step


def _loss(output: Any, targets: Tensor) -> Tensor:
    """Backprop's, as ``TrainingStep`` has it."""
    logits, own_head = outputs_of(output)
    loss = cross_entropy(logits, targets)
    return loss if own_head is None else loss + OWN_HEAD_WEIGHT * cross_entropy(own_head, targets)


def with_peaks(made: RanksBench) -> RanksBench:
    """The same with planned memory: messages on their way are not in it."""
    backprop, local = Strategy.of("bp"), made.strategy
    planned = plan(made.workload, batch=made.batch, strategies=[backprop, local])
    alone = {str(row.strategy): row.peak or 0 for row in planned.rows}
    parts = []
    if made.how == "modules":
        ranks = len(made.sizes)
        found = plan_ranks(
            made.workload, batch=made.batch, strategy=local, ranks=ranks, sizes=made.sizes
        )
        parts = [row.peak for row in found.rows]
    rows = [
        replace(row, peaks=tuple(parts))
        if parts and row.processes > 1
        else replace(row, peaks=(alone[row.training],) * row.processes)
        for row in made.rows
    ]
    return replace(made, rows=tuple(rows))
