"""Simulated throughput and memory of 2 to 512 devices: ours and pipelines of backprop.

    python benchmarks/scaling.py [--write]

Two networks. ResNet-110 for 32×32 images in 55 modules (dgl+hpff, k = 2, n = 2, light auxiliary
networks, batch 128): what modules compute and save is planned, memory of ours by
`hpff.parallel.planning`, on devices of 10 TFLOP/s. A made-up transformer of 1024 equal blocks
(width 4096, 2048 tokens, 206 billion parameters), by arithmetic alone, on devices of 400 TFLOP/s: a
block saves 34 bytes for each number of its output (Korthikanti et al. 2022, attention without its
scores), takes 16 bytes a parameter with Adam, and its auxiliary networks together cost one block's
forward; a batch is 512 sequences, which ours takes one by one, without a flush between batches.

Time goes with arithmetic, whatever the size of a micro-batch. Backprop is not recomputed; it has
the best of p, 2p and 4p micro-batches, at most one a sample. Throughput is over backprop on one
device. Local learning's own is beside the table: it computes something else.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path

from hpff.engine.reach import Reach
from hpff.memory import Strategy, Workload
from hpff.parallel.groups import balanced
from hpff.parallel.pipelines import (
    Cost,
    Local,
    Pipeline,
    gpipe,
    local_work,
    one_f_one_b,
    seconds_a_step,
    stages,
    zero_bubble,
)
from hpff.parallel.planning import RanksPlan, plan_ranks
from hpff.parallel.simulation import Link, simulate
from hpff.settings import LIGHT

HERE = Path(__file__).parent
DEVICES = (2, 4, 8, 32, 128, 512)
LINKS = {
    "50 GB/s, 5 µs": Link(5e-6, 50e9),
    "1.25 GB/s, 50 µs": Link(50e-6, 1.25e9),
}
BACKPROP: dict[str, Pipeline] = {"GPipe": gpipe, "1F1B": one_f_one_b, "ZB-H1": zero_bubble}
TERA = 1e12


@dataclass(frozen=True)
class Network:
    """A network to be shared out.

    Attributes:
        costs: of each module for a whole batch, in seconds and bytes.
        reach: of its cascades.
        samples: in a batch.
        micro_batches: into which ours cuts a batch.
        planned: bytes of each device by p, where they were planned.
    """

    name: str
    costs: Sequence[Cost]
    reach: Reach
    samples: int
    micro_batches: int
    planned: Callable[[int], int] | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write benchmarks/scaling.md")
    given = parser.parse_args()
    text = io.StringIO()
    with redirect_stdout(text):
        print(__doc__)
        for network in (resnet110(), transformer()):
            for line in table(network):
                print(line)
    print(text.getvalue())
    if given.write:
        (HERE / "scaling.md").write_text(text.getvalue())


def resnet110() -> Network:
    workload, batch = Workload("resnet110", 55), 128
    strategy = Strategy.of("dgl", 2, 2).with_settings(**LIGHT)

    @cache
    def plan(ranks: int) -> RanksPlan:
        return plan_ranks(workload, batch=batch, strategy=strategy, ranks=ranks)

    first = plan(2)
    seconds = 1 / (10 * TERA)
    costs = [
        Cost(
            forward=cost.forward * seconds,
            input_gradient=cost.input_gradient * seconds,
            weight_gradient=cost.weight_gradient * seconds,
            auxiliary=cost.auxiliary * seconds,
            saved=module.saved * batch / 2,  # on an example of two
            output=module.output_bytes * batch / 2,
            standing=12 * module.parameters,  # with its gradient and SGD's momentum
        )
        for cost, module in zip(first.costs, first.partition, strict=True)
    ]
    return Network(
        "ResNet-110, K = 55",
        costs,
        first.reach,
        batch,
        1,
        lambda p: max(row.peak for row in plan(p).rows),
    )


def transformer() -> Network:
    width, tokens, samples, blocks = 4096, 2048, 512, 1024
    forward = (24 * tokens * width**2 + 4 * tokens**2 * width) * samples / (400 * TERA)
    saved = 34.0 * tokens * width * samples
    block = Cost(
        forward,
        forward,
        forward,
        auxiliary=forward,
        saved=saved,
        output=2.0 * tokens * width * samples,
        auxiliary_bytes=saved / 4,
        standing=16.0 * 12 * width**2,
    )
    return Network(
        "Transformer of 1024 blocks", [block] * blocks, Reach.uniform(blocks, 2), samples, samples
    )


def table(network: Network) -> Iterator[str]:
    """The lines of a network's table, in Markdown."""
    alone = sum(cost.backprop for cost in network.costs)
    own = seconds_a_step(Local(network.costs, [len(network.costs)], network.reach).works)
    yield f"## {network.name}"
    yield ""
    yield f"Local learning on one device has {alone / own:.2f} of backprop's throughput."
    yield ""
    yield "| devices | pipeline | " + " | ".join(LINKS) + " | memory of the fullest device, GB |"
    yield "| --- | --- |" + " --- |" * (len(LINKS) + 1)
    for devices in DEVICES:
        if devices > len(network.costs):
            yield f"| {devices} | all | – | – | more devices than modules |"
            continue
        for name, build in BACKPROP.items():
            yield row(devices, name, *backprop(network, devices, build), alone)
        yield row(devices, "ours", *ours(network, devices), alone)
    yield ""


def row(devices: int, name: str, seconds: Sequence[float], memory: float, alone: float) -> str:
    cells = " | ".join(f"{alone / each:.2f}" for each in seconds)
    return f"| {devices} | {name} | {cells} | {memory / 1e9:,.{2 if memory < 1e10 else 0}f} |"


def backprop(network: Network, devices: int, build: Pipeline) -> tuple[list[float], float]:
    """Seconds of a step by each link at the best number of micro-batches, and the most memory."""
    costs = network.costs
    parts = stages(costs, balanced([cost.backprop for cost in costs], devices))
    seconds, memory = [], 0.0
    for link in LINKS.values():
        tried = []
        for m in {min(network.samples, factor * devices) for factor in (1, 2, 4)}:
            timeline = simulate(build(parts, m, 1), link)
            tried.append((timeline.seconds, timeline.peaks()))
        best, peaks = min(tried)
        seconds.append(best)
        held = zip(peaks, parts, strict=True)
        memory = max(memory, *(peak + part.standing for peak, part in held))
    return seconds, memory


def ours(network: Network, devices: int) -> tuple[list[float], float]:
    """Seconds of a step by each link, and the most memory of a device."""
    m = network.micro_batches
    costs = [cost.of_one(m) for cost in network.costs]
    sizes = balanced(local_work(costs, network.reach), devices)
    works = Local(costs, sizes, network.reach).works
    seconds = [m * seconds_a_step(works, link) for link in LINKS.values()]
    if network.planned is not None:
        return seconds, network.planned(devices)
    standing = [
        sum(cost.standing for cost in costs[end - size : end])
        for size, end in zip(sizes, accumulate(sizes), strict=True)
    ]
    peaks = simulate(works(3)).peaks()
    return seconds, max(map(sum, zip(peaks, standing, strict=True)))


if __name__ == "__main__":
    main()
