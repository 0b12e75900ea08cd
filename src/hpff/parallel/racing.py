"""Trainings by one process and by several, timed in turns."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hpff.learner import LocalLearner
from hpff.parallel.data_parallel import DataParallel
from hpff.parallel.module_parallel import ModuleParallel

Run = Callable[[int], float]
"""Takes a number of steps; the seconds of one of them, where this process takes part."""
Make = Callable[[Any], torch.optim.Optimizer]


class Course(NamedTuple):
    """What every training of a race does its steps with.

    Attributes:
        images, targets: the batch.
        make: an optimizer, of parameters.
        loss: of the model's output and the targets, for backprop.
        autocast: what a step runs in.
    """

    images: Tensor
    targets: Tensor
    make: Make
    loss: Callable[[Any, Tensor], Tensor]
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext


class Racer(NamedTuple):
    """A training.

    Attributes:
        run: is called by every process at once.
        judge: the rank whose seconds count.
    """

    run: Run
    judge: int = 0


def race(
    racers: Mapping[str, Racer],
    *,
    steps: int,
    rounds: int,
    observe: Callable[[str], None] = lambda _: None,
) -> dict[str, list[float]]:
    """Seconds of a step by each racer in each round, the same on every rank.

    Args:
        racers: by name; in each round each has its turn.
        steps: of each in a round.
        rounds: that count; one before them warms up.
        observe: called before each turn.
    """
    times: dict[str, list[float]] = {name: [] for name in racers}
    for number in range(1 + rounds):
        for name, racer in racers.items():
            observe(name)
            dist.barrier()
            seconds = torch.tensor([racer.run(steps if number else 2)], dtype=torch.float64)
            dist.broadcast(seconds, racer.judge)
            if number:
                times[name].append(seconds.item())
    return times


def timed(steps: int, step: Callable[[], object]) -> float:
    """Seconds of a step, from the end of the first to that of the last."""
    step()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - began) / steps


def alone(step: Callable[[], object]) -> Racer:
    """The first process works, and the others wait."""
    return Racer(lambda steps: 0.0 if dist.get_rank() else timed(steps, step))


def module_step(parameters: Mapping[int, Sequence[nn.Parameter]], make: Make) -> Any:
    """What steps a module that is done, and frees its gradients."""
    optimizers = {j: make(each) for j, each in parameters.items()}

    def done(j: int) -> None:
        optimizers[j].step()
        optimizers[j].zero_grad()

    return done


def apart(step: Callable[[], object]) -> Racer:
    """Every process works, and none sends the others anything."""
    return Racer(lambda steps: timed(steps, step))


def local_step(learner: LocalLearner, course: Course) -> Callable[[], None]:
    """Local learning in one process, every module stepped when it is done."""
    done = module_step(dict(enumerate(learner.module_parameters, start=1)), course.make)

    def step() -> None:
        with course.autocast():
            learner.backward(course.images, course.targets, on_module_done=done)

    return step


def local_by_modules(ranks: ModuleParallel, course: Course) -> Racer:
    """Local learning whose modules are shared out over all ranks; the last one's time counts."""
    done = module_step(ranks.module_parameters, course.make)

    def step() -> None:
        with course.autocast():
            ranks.backward(course.images, course.targets, on_module_done=done)

    def run(steps: int) -> float:
        seconds = timed(steps, step)
        ranks.finish()
        return seconds

    return Racer(run, ranks.ranks - 1)


def local_by_data(learner: LocalLearner, course: Course) -> Racer:
    """Local learning in which every rank has a batch of its own."""
    done = module_step(dict(enumerate(learner.module_parameters, start=1)), course.make)
    parallel = DataParallel(learner, on_reduced=done)

    def step() -> None:
        with course.autocast():
            learner.backward(course.images, course.targets, on_module_done=parallel.module_done)
        parallel.finish()

    return apart(step)


def backprop_by_data(model: nn.Module, course: Course) -> Racer:
    """Backprop by PyTorch's DistributedDataParallel: every rank has a batch of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the name that comes instead is too new
        wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    return apart(backprop_step(wrapped, course))


def backprop_step(model: nn.Module, course: Course) -> Callable[[], None]:
    """Backprop in one process."""
    optimizer = course.make(list(model.parameters()))

    def step() -> None:
        with course.autocast():
            loss = course.loss(model(course.images), course.targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
