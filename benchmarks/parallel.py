"""Throughput of two processes of one thread each over one process of one thread, in turns.

    python benchmarks/parallel.py [--network resnet32 --modules 16 --batch 128] [--write]

In each round come, one after the other: local learning by one process (the other waits), by two
that send each other nothing (the most that two busy cores give), module-parallel by both, and
data-parallel by both; backprop by one process, by two that send nothing, data-parallel by
PyTorch's DistributedDataParallel, and in a pipeline by both (1F1B of torch.distributed.pipelining,
at the same cut, with each number of micro-batches, and at the cut that suits backprop best). Two
processes that send nothing, or share data out, have a batch each, as large as that of one process.
A step includes SGD with momentum. A time is that of a step in the steady state: between the ends
of the first step and of the last on the last rank; for 1F1B, which empties its pipeline in every
step, that is its whole step. Throughput is in images per second; a ratio is the median of the
rounds' own ratios. Give each process a core of its own.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.nn.functional import cross_entropy

from hpff import LocalLearner, models
from hpff.parallel import ModuleParallel, module_seconds, racing
from hpff.parallel.racing import Course, Racer, timed
from hpff.runs import machine

HERE = Path(__file__).parent
ONE = "one process"
APART = "two processes, nothing sent"
DATA = "data-parallel, the same batch for each rank"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--steps", type=int, default=8, help="of each, in a round")
    parser.add_argument("--micro-batches", default="2,4,8,16", help="of 1F1B, each tried")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--only", default="", help="rows with one of these in the name, and one process"
    )
    parser.add_argument("--write", action="store_true", help="append to benchmarks/parallel.md")
    given = parser.parse_args()
    torch.multiprocessing.spawn(rank_main, (given,), nprocs=2)


def options(document: str) -> argparse.ArgumentParser:
    """What is trained."""
    parser = argparse.ArgumentParser(description=document.splitlines()[0])
    parser.add_argument("--network", default="resnet32")
    parser.add_argument("--modules", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--method", default="dgl")
    parser.add_argument("--cascade", type=int, default=2)
    parser.add_argument("--patches", type=int, default=2)
    return parser


def rank_main(rank: int, given: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", 29_517, 2, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    ranks, racers = local_racers(given)
    racers |= backprop_racers(given)
    if given.only:
        racers = {
            name: racer
            for name, racer in racers.items()
            if any(part in name for part in (*given.only.split(","), ONE))
        }
    times = racing.race(racers, steps=given.steps, rounds=given.rounds)
    if rank == 0:
        report(given, times)
    ranks.close()
    dist.barrier()
    dist.destroy_process_group()


def batch_of(given: argparse.Namespace) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(given.batch, 3, 32, 32, generator=generator)
    return images, torch.randint(10, (given.batch,), generator=generator)


def learner_of(given: argparse.Namespace) -> LocalLearner:
    torch.manual_seed(0)
    return LocalLearner(
        models.create(given.network),
        modules=given.modules,
        example=batch_of(given)[0][:2],
        num_classes=10,
        method=given.method,
        cascade=given.cascade,
        patches=given.patches,
    )


def local_racers(given: argparse.Namespace) -> tuple[ModuleParallel, dict[str, Racer]]:
    """Local learning by both processes, and all that is timed of it."""
    images, targets = batch_of(given)
    alone = learner_of(given)
    seconds = module_seconds(alone, images, targets, optimizer=sgd)
    costs = torch.tensor(seconds, dtype=torch.float64)
    dist.broadcast(costs, 0)
    ranks = ModuleParallel(learner_of(given), costs=costs.tolist())
    if ranks.rank == 0:
        print(f"modules of each rank: {ranks.sizes}", flush=True)
    given.cut = ranks.sizes[0]
    course = course_of(given)
    return ranks, {
        f"local learning, {ONE}": racing.alone(racing.local_step(alone, course)),
        f"local learning, {APART}": racing.apart(racing.local_step(alone, course)),
        "local learning, module-parallel": racing.local_by_modules(ranks, course),
        f"local learning, {DATA}": racing.local_by_data(learner_of(given), course),
    }


def course_of(given: argparse.Namespace) -> Course:
    return Course(*batch_of(given), sgd, cross_entropy)


def sgd(parameters: list[nn.Parameter]) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, nesterov=True)


def module_step(parameters: dict[int, list[nn.Parameter]]) -> Callable[[int], None]:
    done: Callable[[int], None] = racing.module_step(parameters, sgd)
    return done


def backprop_racers(given: argparse.Namespace) -> dict[str, Racer]:
    course = course_of(given)
    step = racing.backprop_step(model_of(given), course)
    racers = {
        f"backprop, {ONE}": racing.alone(step),
        f"backprop, {APART}": racing.apart(step),
        f"backprop, {DATA}": racing.backprop_by_data(model_of(given), course),
    }
    for cut, name in ((given.cut, "our cut"), (backprop_cut(given), "its own cut")):
        for count in map(int, given.micro_batches.split(",")):
            racer = pipeline(given, cut, count)
            racers[f"backprop, 1F1B at {name}, {count} micro-batches"] = racer
    return racers


def model_of(given: argparse.Namespace) -> nn.Module:
    torch.manual_seed(0)
    return models.create(given.network)


def backprop_cut(given: argparse.Namespace) -> int:
    """After which module both halves of backprop take about the same: what they save."""
    saved = [module.saved for module in learner_of(given).partition]
    uneven = [abs(sum(saved[:cut]) - sum(saved[cut:])) for cut in range(1, len(saved))]
    return 1 + uneven.index(min(uneven))


def pipeline(given: argparse.Namespace, cut: int, count: int) -> Racer:
    images, targets = batch_of(given)
    model = halves(model_of(given), learner_of(given).partition[cut - 1].cut)
    rank = dist.get_rank()
    optimizer = sgd(list(model[rank].parameters()))
    stage = PipelineStage(model[rank], rank, 2, torch.device("cpu"))
    schedule = Schedule1F1B(stage, count, loss_fn=cross_entropy)

    def step() -> None:
        if rank == 0:
            schedule.step(images)
        else:
            schedule.step(target=targets)
        optimizer.step()
        optimizer.zero_grad()

    return Racer(lambda steps: timed(steps, step), judge=1)


def halves(model: nn.Module, cut: str) -> tuple[nn.Sequential, nn.Sequential]:
    """The two stages of a ResNet for 32×32 images."""
    first = nn.Sequential(model.conv1, model.bn1, model.relu)
    last = nn.Sequential(model.avgpool, nn.Flatten(), model.fc)
    blocks = [
        (f"layer{i}.{name}", block)
        for i, stage in enumerate((model.layer1, model.layer2, model.layer3), start=1)
        for name, block in stage.named_children()
    ]
    end = [name for name, _ in blocks].index(cut) + 1
    before, after = [[block for _, block in each] for each in (blocks[:end], blocks[end:])]
    return nn.Sequential(first, *before, Sent()), nn.Sequential(Sent(), *after, last)


class Sent(nn.Module):
    """What goes over the boundary is contiguous, as the pipeline's messages must be."""

    def forward(self, x: Tensor) -> Tensor:
        sent: Tensor = _Sent.apply(x)
        return sent


class _Sent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient.contiguous()


def report(given: argparse.Namespace, times: dict[str, list[float]]) -> None:
    kinds = {name: name.partition(",")[0] for name in times}
    lines = ["| what | step, ms (median) | throughput over one process |", "| --- | --- | --- |"]
    for name, found in times.items():
        base = times[f"{kinds[name]}, {ONE}"]
        batches = 2 if name.endswith((DATA, APART)) else 1
        ratio = statistics.median(batches * b / t for b, t in zip(base, found, strict=True))
        lines.append(f"| {name} | {1e3 * statistics.median(found):.0f} | {ratio:.2f} |")
    what = (
        f"{given.network}, K = {given.modules}, k = {given.cascade}, n = {given.patches}, "
        f"{given.method}, batch {given.batch}, fp32, {given.rounds} rounds of {given.steps} "
        f"steps; our cut is after module {given.cut}. {machine.describe()}"
    )
    text = "\n".join(("", what, "", *lines, ""))
    print(text)
    if given.write:
        path = HERE / "parallel.md"
        before = path.read_text() if path.exists() else f"{__doc__}\n"
        path.write_text(before + text)


if __name__ == "__main__":
    main()
