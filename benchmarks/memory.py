"""Peak memory of a training step, planned without a device: the same on every machine.

    python benchmarks/memory.py [--deep] [--write]

fp32, batch 1024, 32×32 images; parameters, gradients and SGD's momentum included; checkpointing
with its best segment length, in blocks. --deep adds ResNet-1202 (minutes), --write puts the table
into benchmarks/memory.md. `hpff plan resnet110 --batch 1024` shows what each peak is made of.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from hpff.memory import BEST, Way, Workload, plan
from hpff.training import machine

HERE = Path(__file__).parent
HPFF = Way("dgl", cascade=2, patches=2)
LOCAL = (Way("dgl"), Way("dgl", cascade=2), HPFF, replace(HPFF, lean=True))
NETWORKS = {"resnet32": 16, "resnet110": 55}
DEEP = {"resnet1202": 601}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--deep", action="store_true", help="ResNet-1202 too")
    parser.add_argument("--write", action="store_true", help="write benchmarks/memory.md")
    given = parser.parse_args()
    lines = ["| network | method | peak, GiB | of bp |", "| --- | --- | --- | --- |"]
    for network, modules in NETWORKS.items():
        lines += rows(network, modules, (Way(), Way(segment=BEST), *LOCAL))
    if given.deep:
        for network, modules in DEEP.items():
            lines += rows(network, modules, (Way(), HPFF))
    table = "\n".join(lines)
    print(table)
    if given.write:
        (HERE / "memory.md").write_text(f"{__doc__}\n{table}\n\n{machine.describe()}\n")


def rows(network: str, modules: int, ways: tuple[Way, ...]) -> list[str]:
    found = plan(Workload(network, modules), batch=1024, ways=ways).rows
    base = found[0].peak or 1
    return [
        f"| {network}, K = {modules} | {row.way} | {(row.peak or 0) / 2**30:.2f} "
        f"| {(row.peak or 0) / base:.2f} |"
        for row in found
    ]


if __name__ == "__main__":
    main()
