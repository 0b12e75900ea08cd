"""Backprop's own gradients in less memory than by checkpointing: peak of a step, and arithmetic.

    python benchmarks/backprop_memory.py [--networks resnet50,...] [--write]

Parameters, gradients and SGD's momentum included; counted under fake tensors, so the same on every
machine. Networks see 128 images of 224×224 and 1000 classes, ResNet-110 1024 of 32×32 and 10
classes. Each cell has GiB, and after the stroke the arithmetic of a step (convolutions, matrix
products, attention) over backprop's. Checkpointing is torch.utils.checkpoint over as many blocks
together as are in brackets, at its best; where the model has no chain of blocks there is none. "By
blocks" is LocalLearner(model, method="bp", recompute="blocks", ...), whose gradients are
backprop's, bit for bit. --write puts the table into benchmarks/backprop_memory.md.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from memory_tables import gib, table, write

from hpff.errors import UserError
from hpff.memory import RECOMPUTED, Strategy, Workload
from hpff.memory.rehearsal import Rehearsal, Stage, best_checkpointing

LARGE = (
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext101_32x8d",
    "vgg13",
    "torchvision/densenet121",
    "timm/convnext_tiny",
    "timm/regnety_040",
    "timm/efficientnet_b0",
    "timm/swin_tiny_patch4_window7_224",
    "timm/vit_base_patch16_224",
)
PRECISIONS = ("fp32", "bf16")
WAYS = ("backprop", "checkpointing", "by blocks", "of it")
HEADER = ("network", *(f"{precision}: {way}" for precision in PRECISIONS for way in WAYS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join((*LARGE, "resnet110")))
    parser.add_argument("--write", action="store_true", help="write benchmarks/backprop_memory.md")
    given = parser.parse_args()
    lines = []
    for name in given.networks.split(","):
        workload, batch = workload_of(name)
        cells = (_cells(replace(workload, precision=precision), batch) for precision in PRECISIONS)
        lines.append((name, *(cell for each in cells for cell in each)))
        print(*lines[-1], sep=" | ", flush=True)
    made = table(HEADER, lines)
    print(made)
    if given.write:
        write(__file__, __doc__, made)


def workload_of(name: str) -> tuple[Workload, int]:
    """A network's workload, and its batch."""
    if name in LARGE:
        return Workload(name, image=(3, 224, 224), num_classes=1000), 128
    return Workload(name), 1024


def _cells(workload: Workload, batch: int) -> tuple[str, ...]:
    stage = Stage(workload)
    peak, base = Rehearsal(stage, Strategy.of()).cost(batch)
    blocks, own = Rehearsal(stage, RECOMPUTED).cost(batch)
    by_blocks = f"{gib(blocks)} / {own / base:.2f}"
    try:
        checkpointing, _ = best_checkpointing(stage, batch)
    except UserError:
        return gib(peak), "", by_blocks, ""
    usual, more = checkpointing.cost(batch)
    length = checkpointing.strategy.segment
    other = f"{gib(usual)} ({length}) / {more / base:.2f}"
    return gib(peak), other, by_blocks, f"{blocks / usual:.2f}"


if __name__ == "__main__":
    main()
