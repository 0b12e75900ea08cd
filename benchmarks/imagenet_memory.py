"""ImageNet's networks at 224×224: planned peak memory of a training step, in GiB.

    python benchmarks/imagenet_memory.py [--write]

fp32, batch 128, 1000 classes; parameters, gradients and SGD's momentum included, counted under fake
tensors (minutes on one core). Checkpointing recomputes as many blocks together as are in brackets,
at its best. HPFF is k = 2 and n = 2; "once" and "repeatedly" are
DGL+HPFF with that strategy of recomputation.
Cuts are the published ones (for VGG-13: as many layers in each module), or share out the memory of
activations (balance="memory"). The paper gives no memory for these networks. --write puts the table
into benchmarks/imagenet_memory.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

from memory_tables import gib, peak, table, write

from hpff.cutting.balance import Balance
from hpff.memory import BEST, Strategy, Workload, plan

NETWORKS = ("resnet101", "resnet152", "resnext101_32x8d", "vgg13")
CUTS: dict[str, Balance] = {"published": "blocks", "by memory": "memory"}
HPFF = Strategy.of("dgl", cascade=2, patches=2)
LOCAL = {
    "DGL": Strategy.of("dgl"),
    "DGL+HPFF": HPFF,
    "once": HPFF.with_settings(recompute="once"),
    "repeatedly": HPFF.with_settings(recompute="repeatedly"),
    "InfoPro": Strategy.of("infopro"),
    "InfoPro+HPFF": Strategy.of("infopro", cascade=2, patches=2),
}
HEADER = ("network", "K", "cuts", "BP", "BP + checkpointing", *LOCAL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write benchmarks/imagenet_memory.md")
    given = parser.parse_args()
    made = table(HEADER, (line for network in NETWORKS for line in rows(network)))
    print(made)
    if given.write:
        write(__file__, __doc__, made)


def rows(network: str) -> Iterator[tuple[object, ...]]:
    workload = Workload(network, image=(3, 224, 224), num_classes=1000)
    whole, parts = plan(
        workload, batch=128, strategies=(Strategy.of(), Strategy.of(segment=BEST))
    ).rows
    backprop = (gib(peak(whole)), f"{gib(peak(parts))} ({parts.strategy.segment})")
    for modules in (4, 8):
        for cuts, balance in CUTS.items():
            cut = replace(workload, modules=modules, balance=balance)
            found = plan(cut, batch=128, strategies=tuple(LOCAL.values())).rows
            yield network, modules, cuts, *backprop, *(gib(peak(row)) for row in found)


if __name__ == "__main__":
    main()
