"""Real ranks that pause instead of computing, beside the simulation, for one to four processes.

    python benchmarks/idle_ranks.py [--modules 12] [--milliseconds 20] [--steps 12] [--write]

Every piece of work takes a time that was drawn for it, in which the core is free: so four ranks can
be timed on two cores. All else is real: processes, the schedule, messages over Gloo, autograd. A
module pauses in its forward, in the gradient of its input and in that of its weights, an auxiliary
network in its forward and its backward. The simulation is told what one process was seen to take
for each, and how long a message takes. "Ours" is module-parallel local learning, with k modules in
a cascade; GPipe and 1F1B are those of torch.distributed.pipelining, 8 micro-batches, on stages of
the same modules without auxiliary networks. Throughput is over one process of the same kind. With
--write the table goes to benchmarks/idle_ranks.md.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from memory_tables import table, write
from timelines import measured_link
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn.functional import cross_entropy

from hpff import LocalLearner
from hpff.methods import AuxiliaryContext, Method
from hpff.parallel import ModuleParallel, racing
from hpff.parallel.groups import balanced
from hpff.parallel.metering import costs_of, metered
from hpff.parallel.pipelines import (
    Cost,
    Local,
    gpipe,
    local_work,
    one_f_one_b,
    seconds_a_step,
    stages,
)
from hpff.parallel.simulation import Link, simulate
from hpff.runs import machine

BATCH, WIDTH, CLASSES, MICRO_BATCHES = 64, 16, 4, 8
CASCADES = (1, 2, 3)
MOST = 4


class _Pausing(torch.autograd.Function):
    """What is given, after a pause; a pause in its gradient, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, before: float, after: float) -> Tensor:
        time.sleep(before)
        ctx.after = after
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        time.sleep(ctx.after)
        return gradient, None, None


def pause(x: Tensor, before: float, after: float) -> Tensor:
    paused: Tensor = _Pausing.apply(x, before, after)  # type: ignore[no-untyped-call]
    return paused


class Pausing(nn.Module):
    """A module that takes so many seconds for a batch: forward, input's and weight's gradient."""

    def __init__(self, forward: float, of_input: float, of_weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH) / 10)
        self.seconds = forward, of_input, of_weight

    def forward(self, x: Tensor) -> Tensor:
        forward, of_input, of_weight = (each * len(x) / BATCH for each in self.seconds)
        return torch.tanh(pause(x, forward, of_input) + pause(self.weight, 0, of_weight))


class PausingHead(nn.Module):
    """An auxiliary network: so many seconds for a batch, a third of them in its forward."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.scores = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.scores(pause(x, self.seconds / 3, 2 * self.seconds / 3))
        return scores


class PausingMethod(Method):
    """The criterion behind auxiliary networks that pause."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds = seconds

    def auxiliary(self, context: AuxiliaryContext) -> nn.Module:
        return PausingHead(self.seconds[context.module - 1])

    def loss(
        self, outputs: Mapping[str, Tensor], targets: Tensor, context: AuxiliaryContext
    ) -> Tensor:
        assert isinstance(outputs, Tensor)
        return context.criterion(outputs, targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modules", type=int, default=12)
    parser.add_argument("--milliseconds", type=float, default=20, help="of a piece, on average")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    context = torch.multiprocessing.get_context("spawn")
    found: dict[tuple[str, int], tuple[float, float]] = {}
    for ranks in range(1, MOST + 1):
        answers = context.SimpleQueue()
        torch.multiprocessing.spawn(rank_main, (ranks, given, answers), nprocs=ranks)
        found |= answers.get()
    report(given, found)


def rank_main(rank: int, ranks: int, given: argparse.Namespace, answers: Any) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", 29_523, ranks, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    latency = torch.zeros((), dtype=torch.float64)
    if rank < 2 <= ranks:
        latency += measured_link(4 * BATCH * WIDTH).latency
    dist.broadcast(latency, 0)
    link = Link(latency.item())
    found = {}
    for k in CASCADES:
        costs = seen_costs(given, k)
        sizes = balanced(local_work(costs, learner_of(given, k).reach), ranks)
        simulated = seconds_a_step(Local(costs, sizes, learner_of(given, k).reach).works, link)
        found[f"ours, k = {k}", ranks] = by_modules(given, k, sizes), simulated
    own = stages(costs, sizes)
    for name, schedule, order in (
        ("GPipe", ScheduleGPipe, gpipe),
        ("1F1B", Schedule1F1B, one_f_one_b),
    ):
        simulated = simulate(order(own, MICRO_BATCHES, 1), link).seconds
        found[name, ranks] = in_a_pipeline(given, sizes, schedule), simulated
    if rank == ranks - 1:
        answers.put(found)
    dist.barrier()
    dist.destroy_process_group()


def network(given: argparse.Namespace) -> nn.Sequential:
    """Its modules take what is drawn, from a half of the average to one and a half."""
    draw = random.Random(0)
    mean = given.milliseconds / 1e3
    pieces = [[mean * (0.5 + draw.random()) for _ in range(3)] for _ in range(given.modules)]
    torch.manual_seed(0)
    layers = [Pausing(*each) for each in pieces]
    return nn.Sequential(*layers[:-1], nn.Sequential(layers[-1], nn.Linear(WIDTH, CLASSES)))


def learner_of(given: argparse.Namespace, k: int) -> LocalLearner:
    draw = random.Random(1)
    mean = given.milliseconds / 2e3
    method = PausingMethod([mean * (0.5 + draw.random()) for _ in range(given.modules)])
    names = [str(index) for index in range(given.modules - 1)]
    example = torch.zeros(2, WIDTH)
    return LocalLearner(
        network(given),
        modules=names,
        example=example,
        num_classes=CLASSES,
        method=method,
        cascade=k,
        features="vector",
    )


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(BATCH, WIDTH, generator=generator),
        torch.randint(CLASSES, (BATCH,), generator=generator),
    )


def seen_costs(given: argparse.Namespace, k: int) -> list[Cost]:
    """What the first process takes for each piece of work of one step."""
    learner = learner_of(given, k)
    step = racing.module_step(dict(enumerate(learner.module_parameters, start=1)), sgd)
    for _ in range(2):
        with metered(learner, time.perf_counter) as meter:
            learner.backward(*batch(), on_module_done=step)
    keys = sorted(meter.amounts)
    amounts = torch.tensor([meter.amounts[key] for key in keys], dtype=torch.float64)
    dist.broadcast(amounts, 0)
    seen = dict(zip(keys, amounts.tolist(), strict=True))
    return costs_of(seen, learner.partition, learner.reach)


def sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.01)


def by_modules(given: argparse.Namespace, k: int, sizes: list[int]) -> float:
    """Seconds of a step in the steady state of the slowest rank."""
    ranks = ModuleParallel(learner_of(given, k), sizes=sizes)
    step = racing.module_step(ranks.module_parameters, sgd)
    warm, ends = 4, []
    for _ in range(warm + given.steps):
        ranks.backward(*batch(), on_module_done=step)
        ends.append(time.perf_counter())
    ranks.close()
    return slowest((ends[-1] - ends[warm - 1]) / given.steps)


def in_a_pipeline(given: argparse.Namespace, sizes: list[int], kind: Any) -> float:
    """Seconds of a step of backprop, with a flush at its end."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    layers = list(network(given))
    begin = sum(sizes[:rank])
    own = nn.Sequential(*layers[begin : begin + sizes[rank]])
    optimizer = sgd(own.parameters())
    stage = PipelineStage(own, rank, ranks, torch.device("cpu"))
    schedule = kind(stage, MICRO_BATCHES, loss_fn=cross_entropy)
    images, targets = batch()

    def step() -> None:
        inputs = (images,) if rank == 0 else ()
        schedule.step(*inputs, **({"target": targets} if rank == ranks - 1 else {}))
        optimizer.step()
        optimizer.zero_grad()

    step()
    dist.barrier()
    begun = time.perf_counter()
    for _ in range(given.steps):
        step()
    return slowest((time.perf_counter() - begun) / given.steps)


def slowest(seconds: float) -> float:
    found = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return float(found)


def report(given: argparse.Namespace, found: dict[tuple[str, int], tuple[float, float]]) -> None:
    counts = range(2, MOST + 1)
    header = ["pipeline", "one process, ms"]
    header += [
        f"{ranks} processes, {kind}" for ranks in counts for kind in ("measured", "foretold")
    ]
    rows = []
    for name in dict.fromkeys(name for name, _ in found):
        measured, simulated = found[name, 1]
        row = [name, f"{1e3 * measured:.0f} ({1e3 * simulated:.0f})"]
        for ranks in counts:
            one, other = found[name, ranks]
            row += [f"{measured / one:.2f}", f"{simulated / other:.2f}"]
        rows.append(tuple(row))
    what = (
        f"{given.modules} modules, pieces of {given.milliseconds:g} ms on average, {given.steps} "
        f"steps. {os.getloadavg()[0]:.1f} processes wanted a core. {machine.describe()}"
    )
    made = f"{table(tuple(header), rows)}\n\n{what}"
    print(made)
    if given.write:
        write(__file__, __doc__, made)


if __name__ == "__main__":
    main()
