"""DeepLabV3-R101 at full size: peak memory of a training step, and its arithmetic.

    python benchmarks/segmentation_memory.py [--methods infopro,infopro+hpff] [--write]

The supplement's Cityscapes row: crops of 512×1024, batch 8, 19 classes, K = 4, fp32, SGD with
momentum, channels first; torchvision's model with its own auxiliary head. Parameters, gradients,
momentum and images are in it; counted under fake tensors, so the same on every machine, without
scratch space inside kernels. Each cell has GiB, and after the stroke the arithmetic of a step
(convolutions, matrix products) over backprop's. Checkpointing recomputes as many blocks together as
are in brackets, at its best. HPFF is k = 2 and n = 2. "never", "once", "blocks" and "repeatedly"
are the ways of recomputation. Cuts are HPFF's of a ResNet-101 on ImageNet, or share out the memory
of activations (balance="memory"). The supplement gives no memory for Cityscapes. --write puts the
table into benchmarks/segmentation_memory.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from memory_tables import gib, table, write

from hpff.cutting.balance import Balance
from hpff.memory import RECOMPUTED, Strategy, Workload
from hpff.memory.rehearsal import Rehearsal, Stage, best_checkpointing

BATCH, MODULES = 8, 4
WORKLOAD = Workload("torchvision/deeplabv3_resnet101", image=(3, 512, 1024), num_classes=19)
CUTS: dict[str, Balance] = {"HPFF's": "blocks", "by memory": "memory"}
WAYS = ("never", "once", "blocks", "repeatedly")
HEADER = ("cuts", "method", *WAYS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="infopro,infopro+hpff")
    parser.add_argument("--cuts", default=",".join(CUTS))
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    stage = Stage(WORKLOAD)
    peak, base = Rehearsal(stage, Strategy.of()).cost(BATCH)
    print(f"bp: {gib(peak)}", flush=True)
    checkpointing, _ = best_checkpointing(stage, BATCH)
    least, arithmetic = checkpointing.cost(BATCH)
    segment = checkpointing.strategy.segment
    blocks, more = Rehearsal(stage, RECOMPUTED).cost(BATCH)
    lines = [
        ("", "bp", f"{gib(peak)} / 1.00", "", f"{gib(blocks)} / {more / base:.2f}", ""),
        (
            "",
            f"bp+checkpointing ({segment})",
            f"{gib(least)} / {arithmetic / base:.2f}",
            "",
            "",
            "",
        ),
    ]
    print(lines, flush=True)
    for cuts in given.cuts.split(","):
        lines += rows(stage, cuts, given.methods.split(","), base)
    made = table(HEADER, lines)
    print(made)
    if given.write:
        write(__file__, __doc__, made)


def rows(stage: Stage, cuts: str, methods: list[str], base: int) -> Iterator[tuple[str, ...]]:
    """A line for each method; each is printed as it comes, too."""
    cut = stage.with_cut(MODULES, CUTS[cuts])
    for label in methods:
        method, _, hpff = label.partition("+")
        strategy = Strategy.of(method, 2, 2) if hpff else Strategy.of(method)
        cells = []
        for way in WAYS:
            rehearsal = Rehearsal(cut, strategy.with_settings(recompute=way))
            peak, arithmetic = rehearsal.cost(BATCH)
            cells.append(f"{gib(peak)} / {arithmetic / base:.2f}")
            print(cuts, label, way, cells[-1], flush=True)
        yield (cuts, label, *cells)


if __name__ == "__main__":
    main()
