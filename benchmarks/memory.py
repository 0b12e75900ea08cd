"""Peak memory of a training step, planned without a device: the same on every machine.

    python benchmarks/memory.py [--deep] [--write]

fp32, batch 1024, 32×32 images; parameters, gradients and SGD's momentum included; checkpointing
with its best segment length, in blocks. "Working" leaves out parameters, gradients and momentum,
as many as there are at the peak, and the images. "Public order" does dgl+hpff's work in the order
of HPFF's public code (benchmarks/public_order.py). --deep adds ResNet-1202 (minutes), --write puts
the table into benchmarks/memory.md. `hpff plan resnet110 --batch 1024 --recompute once,blocks`
shows what each peak is made of.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from memory_tables import gib, peak, table, write
from public_order import public_order_peak

from hpff.memory import BEST, Row, Strategy, Workload, plan

HEADER = ("network", "method", "peak, GiB", "of bp", "working, GiB")
BATCH = 1024
HPFF = Strategy.of("dgl", cascade=2, patches=2)
LEAN = [HPFF.with_settings(recompute=way) for way in ("once", "blocks", "repeatedly")]
ALL = (
    Strategy.of(),
    Strategy.of(segment=BEST),
    Strategy.of("dgl"),
    Strategy.of("dgl", cascade=2),
    HPFF,
    *LEAN,
)
NETWORKS = {"resnet32": 16, "resnet110": 55}
DEEP = {"resnet1202": 601}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--deep", action="store_true", help="ResNet-1202 too")
    parser.add_argument("--write", action="store_true", help="write benchmarks/memory.md")
    given = parser.parse_args()
    lines = [line for name, modules in NETWORKS.items() for line in rows(name, modules, ALL)]
    if given.deep:
        for name, modules in DEEP.items():
            lines += rows(name, modules, (Strategy.of(), HPFF))
    made = table(HEADER, lines)
    print(made)
    if given.write:
        write(__file__, __doc__, made)


def rows(network: str, modules: int, strategies: Sequence[Strategy]) -> list[tuple[str, ...]]:
    name = f"{network}, K = {modules}"
    observe = partial(print, name, file=sys.stderr)
    found = plan(
        Workload(network, modules), batch=BATCH, strategies=strategies, observe=observe
    ).rows
    peaks = {str(row.strategy): peak(row) for row in found}
    working = {str(row.strategy): gib(peak(row) - held(row)) for row in found}
    if network in NETWORKS:
        peaks["dgl+hpff, public order"] = public_order_peak(2 * modules, BATCH)
    backprop = peaks["bp"]
    return [
        (name, strategy, gib(size), f"{size / backprop:.2f}", working.get(strategy, ""))
        for strategy, size in peaks.items()
    ]


def held(row: Row) -> int:
    return row.alive_of("parameters", "buffers", "gradients", "optimizer", "inputs")


if __name__ == "__main__":
    main()
