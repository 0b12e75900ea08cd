"""What two real ranks did beside what was simulated, in a picture and in numbers.

    python benchmarks/timelines.py [--network resnet32 --modules 16 --batch 128] [--write]

Two processes of one thread each train module-parallel, and write down when each piece of work at
each module began and ended. The simulation is told how long a message of the boundary's size takes
between them, and what each piece takes: once as in this very run, on average, so that it shows
whether ranks wait when they should; and once as before the run, when each of the two did all
modules by itself, both at the same time, so that it shows whether the run could be foretold, which
other work on the same cores spoils. With `--write` the picture goes to docs/scaling/timelines.svg
and the numbers to benchmarks/timelines.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from parallel import batch_of, learner_of, module_step, options
from torch import Tensor

from hpff import LocalLearner
from hpff.engine.phase import Phase
from hpff.parallel import ModuleParallel
from hpff.parallel.groups import balanced
from hpff.parallel.metering import costs_of, metered
from hpff.parallel.pipelines import Cost, Local, local_work, seconds_a_step
from hpff.parallel.simulation import Link, simulate
from hpff.parallel.states import gather_states, share_from_first
from hpff.runs import machine

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "scaling" / "timelines.svg"
KINDS = {"forward": "F", "auxiliary": "A", "carry": "C", "complete": "W"}
COLORS = {"F": "tab:blue", "A": "tab:orange", "C": "tab:green", "W": "tab:red"}
WORDS = {"F": "forward", "A": "auxiliary networks", "C": "input gradient", "W": "weights"}


class Piece(NamedTuple):
    """A piece of work: what, at which module, and seconds from the first rank's start."""

    what: str
    module: int
    start: float
    end: float


class Recorder(Phase):
    """Writes down when each piece of work begins and ends."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self._last = last
        self._since = time.perf_counter()
        self.pieces: list[Piece] = []

    def set(self, doing: Literal["", "forward", "auxiliary", "carry", "complete"], j: int) -> None:
        now = time.perf_counter()
        if self.doing and self.module <= self._last:
            self.pieces.append(Piece(KINDS[self.doing], self.module, self._since, now))
        self._since = now
        super().set(doing, j)

    def idle(self, wait: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The same, and what it waits for is no work."""

        def waiting(*given: Any) -> Tensor:
            doing, module = self.doing, self.module
            self.set("", 0)
            tensor = wait(*given)
            self.set(doing, module)
            return tensor

        return waiting


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--write", action="store_true")
    torch.multiprocessing.spawn(rank_main, (parser.parse_args(),), nprocs=2)


def rank_main(rank: int, given: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", 29_519, 2, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    costs = measured_costs(given)
    learner = learner_of(given)
    sizes = balanced(local_work(costs, learner.reach), 2)
    link = measured_link(int(learner.partition[sizes[0] - 1].output_bytes * given.batch / 2))
    pieces = real(given, learner, sizes)
    gathered = gather_states([list(piece) for piece in pieces])
    if gathered is not None:
        ranks = [[Piece(*piece) for piece in each] for each in gathered]
        seen = costs_of(amounts_of(ranks, given.steps), learner.partition, learner.reach)
        locals_ = [Local(each, sizes, learner.reach) for each in (seen, costs)]
        report(given, ranks, locals_, link)
    dist.barrier()
    dist.destroy_process_group()


def measured_costs(given: argparse.Namespace) -> list[Cost]:
    """What each kind of work at each module takes where both processes have all of them."""
    learner = learner_of(given)
    images, targets = batch_of(given)
    step = module_step(dict(enumerate(learner.module_parameters, start=1)))
    taken = []
    for _ in range(1 + given.steps):
        with metered(learner, time.perf_counter) as meter:
            learner.backward(images, targets, on_module_done=step)
        taken.append(meter.amounts)
    keys = sorted(taken[0])
    medians = torch.tensor([statistics.median(each[key] for each in taken[1:]) for key in keys])
    dist.all_reduce(medians)
    amounts = dict(zip(keys, (medians / 2).tolist(), strict=True))
    return costs_of(amounts, learner.partition, learner.reach)


def amounts_of(ranks: list[list[Piece]], steps: int) -> dict[tuple[str, int], float]:
    """What each kind of work at each module took in a step of the run itself, on average."""
    doing = {short: long for long, short in KINDS.items()}
    amounts: dict[tuple[str, int], float] = defaultdict(float)
    for piece in (piece for pieces in ranks for piece in pieces):
        amounts[doing[piece.what], piece.module] += (piece.end - piece.start) / steps
    return amounts


def measured_link(size: int) -> Link:
    """Half of the time that a message and its answer take, as nothing but latency."""
    rank, taken = dist.get_rank(), []
    message = torch.zeros(size, dtype=torch.uint8)
    for _ in range(8):
        start = time.perf_counter()
        if rank == 0:
            dist.send(message, 1)
            dist.recv(message, 1)
        else:
            dist.recv(message, 0)
            dist.send(message, 0)
        taken.append((time.perf_counter() - start) / 2)
    return Link(latency=statistics.median(taken))


def real(given: argparse.Namespace, learner: LocalLearner, sizes: list[int]) -> list[Piece]:
    """What this rank did, and when, from the moment that both began."""
    images, targets = batch_of(given)
    ranks = ModuleParallel(learner, sizes=sizes)
    step = module_step(ranks.module_parameters)
    connections = ranks.connections
    learner.phase = recorder = Recorder(ranks.last)
    for name in ("receive_output", "receive_gradient"):
        setattr(connections, name, recorder.idle(getattr(connections, name)))
    for count in (2, given.steps):  # the first warm up
        ranks.finish()
        recorder.set("", 0)
        dist.barrier()
        recorder.pieces.clear()
        begun = share_from_first(torch.tensor(time.perf_counter(), dtype=torch.float64)).item()
        for _ in range(count):
            ranks.backward(images, targets, on_module_done=step)
            recorder.set("", 0)
    ranks.close()
    recorder.set("", 0)
    return [Piece(p.what, p.module, p.start - begun, p.end - begun) for p in recorder.pieces]


def report(
    given: argparse.Namespace, ranks: list[list[Piece]], told: list[Local], link: Link
) -> None:
    seen, before = (pieces_of(each, given.steps, link) for each in told)
    columns = {"measured": ranks, "simulated": seen, "foretold": before}
    lines = [f"| | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    step = (f"{1e3 * spacing(each[1], given):.0f}" for each in columns.values())
    lines.append(f"| a step in the steady state, ms | {' | '.join(step)} |")
    for rank in (0, 1):
        busy = (sum(p.end - p.start for p in e[rank]) / ends(e) for e in columns.values())
        lines.append(f"| rank {rank} works | {' | '.join(f'{each:.0%}' for each in busy)} |")
    local = told[1]
    alone = seconds_a_step(Local(local.costs, [len(local.costs)], local.reach).works)
    what = (
        f"{given.network}, K = {given.modules}, k = {given.cascade}, n = {given.patches}, "
        f"{given.method}, batch {given.batch}, fp32, {given.steps} steps; modules of each rank: "
        f"{list(local.sizes)}. A step of one process, the other as busy: {1e3 * alone:.0f} ms. A "
        f"message: {1e3 * link.latency:.1f} ms. In the last minute {load()}. "
        f"{machine.describe()}"
    )
    text = "\n".join((__doc__, what, "", *lines, ""))
    print(text)
    if given.write:
        (HERE / "timelines.md").write_text(text)
        PICTURE.parent.mkdir(exist_ok=True)
        draw(ranks, seen, given).savefig(PICTURE, metadata={"Date": None})


def pieces_of(local: Local, steps: int, link: Link) -> list[list[Piece]]:
    """What two simulated ranks do."""
    return [
        [Piece(str(s.work.key[0]), s.work.key[2], s.start, s.end) for s in spans if s.work.seconds]
        for spans in simulate(local.works(steps), link).devices
    ]


def load() -> str:
    """How many processes wanted a core, on average, in the last minute."""
    return f"{os.getloadavg()[0]:.1f} processes wanted a core"


def ends(ranks: list[list[Piece]]) -> float:
    return max(piece.end for each in ranks for piece in each)


def spacing(pieces: list[Piece], given: argparse.Namespace) -> float:
    """Seconds between the ends of the first step and of the last on the last rank."""
    last = [p.end for p in pieces if p.what == "W" and p.module == given.modules]
    return (last[-1] - last[0]) / (len(last) - 1)


def draw(
    real: list[list[Piece]], simulated: list[list[Piece]], given: argparse.Namespace
) -> Figure:
    figure = Figure(figsize=(9, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, ranks, title in ((upper, real, "measured"), (lower, simulated, "simulated")):
        lanes(axes, ranks)
        axes.set_title(f"{title}: {given.network}, K = {given.modules}, two ranks", fontsize=10)
    lower.set_xlabel("seconds")
    handles = [upper.barh([0], [0], color=color) for color in COLORS.values()]
    figure.legend(handles, WORDS.values(), loc="outside lower center", ncols=4, fontsize=9)
    return figure


def lanes(axes: Axes, ranks: list[list[Piece]]) -> None:
    """One lane a rank, one bar for each piece of work."""
    for rank, pieces in enumerate(ranks):
        for what, color in COLORS.items():
            bars = [(p.start, p.end - p.start) for p in pieces if p.what == what]
            axes.broken_barh(bars, (rank - 0.35, 0.7), color=color, linewidth=0)
    axes.set_yticks(range(len(ranks)), [f"rank {rank}" for rank in range(len(ranks))])
    axes.invert_yaxis()


if __name__ == "__main__":
    main()
