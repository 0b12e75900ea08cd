"""Networks at their size on ImageNet, and ViTs: peak memory of a training step, and its arithmetic.

    python benchmarks/imagenet_memory.py [--networks resnet101,...] [--write]

fp32; parameters, gradients and SGD's momentum included; counted under fake tensors, so the same on
every machine (an hour of one core). Networks see 128 images of 224×224 and 1000 classes, the ViTs
1024 of 32×32 in 4×4 patches and 10 classes. Each cell has GiB, and after the stroke the arithmetic
of a step (convolutions, matrix products, attention) over backprop's. Checkpointing recomputes as
many blocks together as are in brackets, at its best. HPFF is k = 2 and n = 2. "never", "once",
"blocks" and "repeatedly" are the ways of recomputation. Auxiliary networks are light
(auxiliary_width=128, auxiliary_pool=2) or as published. Cuts are the published ones (for VGG-13: as
many layers in each module), or share out the memory of activations (balance="memory"). The paper
gives no memory for these networks. --write puts the table into benchmarks/imagenet_memory.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from memory_tables import gib, table, write

from hpff import models
from hpff.cutting.balance import Balance
from hpff.memory import Strategy, Workload
from hpff.memory.rehearsal import Rehearsal, Stage, best_checkpointing
from hpff.settings import LIGHT

IMAGENET = ("resnet101", "resnet152", "resnext101_32x8d", "vgg13")
VITS = {"ViT-B/4": "timm/vit_base_patch16_224", "ViT-Ti/4": "timm/vit_tiny_patch16_224"}
CUTS: dict[str, Balance] = {"published": "blocks", "by memory": "memory"}
WAYS = ("never", "once", "blocks", "repeatedly")
HEADER = ("network", "K", "cuts", "method", "networks", "BP", "BP + checkpointing", *WAYS)


@dataclass(frozen=True)
class Case:
    """A network, its batch, and the cuts and methods that are tried."""

    name: str
    workload: Workload
    batch: int
    modules: tuple[int, ...]
    methods: tuple[str, ...]


def cases() -> Iterator[Case]:
    """All networks."""
    for name in IMAGENET:
        workload = Workload(name, image=(3, 224, 224), num_classes=1000)
        yield Case(name, workload, 128, (4, 8), ("dgl", "infopro"))
    for name, full in VITS.items():
        build = partial(models.create, full, img_size=32, patch_size=4)
        yield Case(name, Workload(build), 1024, (12,), ("dgl",))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join((*IMAGENET, *VITS)))
    parser.add_argument("--write", action="store_true", help="write benchmarks/imagenet_memory.md")
    given = parser.parse_args()
    names = given.networks.split(",")
    found = [line for case in cases() if case.name in names for line in rows(case)]
    made = table(HEADER, found)
    print(made)
    if given.write:
        write(__file__, __doc__, made)


def rows(case: Case) -> Iterator[tuple[object, ...]]:
    """The lines of one network; each is printed as it comes, too."""
    stage = Stage(case.workload)
    peak, base = Rehearsal(stage, Strategy.of()).cost(case.batch)
    checkpointing, _ = best_checkpointing(stage, case.batch)
    least, arithmetic = checkpointing.cost(case.batch)
    segment = checkpointing.strategy.segment
    baselines = gib(peak), f"{gib(least)} ({segment}) / {arithmetic / base:.2f}"
    for modules in case.modules:
        for cuts, balance in CUTS.items():
            cut = stage.with_cut(modules, balance)
            for method in case.methods:
                for networks, settings, ways in (
                    ("light", LIGHT, WAYS),
                    ("published", {}, ("never", "blocks")),
                ):
                    hpff = Strategy.of(method, 2, 2, **settings)
                    cells = {way: _cell(cut, hpff, way, case.batch, base) for way in ways}
                    line = (case.name, modules, cuts, f"{method}+hpff", networks, *baselines)
                    line = (*line, *(cells.get(way, "") for way in WAYS))
                    print(*line, sep=" | ", flush=True)
                    yield line


def _cell(stage: Stage, hpff: Strategy, way: str, batch: int, base: int) -> str:
    rehearsal = Rehearsal(stage, hpff.with_settings(recompute=way))
    peak, arithmetic = rehearsal.cost(batch)
    return f"{gib(peak)} / {arithmetic / base:.2f}"


if __name__ == "__main__":
    main()
