"""Real memory of a training step on the CPU: the process's resident set, beside the plan.

    python benchmarks/resident_memory.py [--network resnet50 --batch 16 --image 320] [--write]

Each row is a process of its own, on Linux. "Resident" is the most memory that it had during its
second step, above what it had before the first (Python, PyTorch and the model), plus the
parameters and the optimizer's state; scratch space inside kernels is in it, and what the C library
keeps back but for small pieces is not. "Planned" is the same step's peak by `hpff plan`. Auxiliary
networks are light. --write puts the table into benchmarks/resident_memory.md.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from memory_tables import table, write

from hpff.memory import RECOMPUTED, Strategy, Workload
from hpff.memory.rehearsal import Rehearsal, Stage, best_checkpointing
from hpff.memory.steps import TrainingStep
from hpff.settings import LIGHT

MODULES = 4
HPFF = Strategy.of("dgl", 2, 2, **LIGHT)
WAYS = ("never", "once", "blocks", "repeatedly")
STEPS = 2
# So that what is freed goes back to the system at once.
ENVIRONMENT = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--image", type=int, default=320)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="write resident_memory.md")
    given = parser.parse_args()
    workload = Workload(
        given.network, modules=MODULES, balance="memory", image=(3, given.image, given.image)
    )
    if given.row is not None:
        print(resident(workload, strategy_of(given.row), given.batch))
        return
    stage = Stage(workload)
    checkpointing, _ = best_checkpointing(stage, given.batch)
    rows = ["bp", f"segment {checkpointing.strategy.segment}", "bp by blocks", *WAYS]
    lines = []
    for row in rows:
        strategy = strategy_of(row)
        planned = Rehearsal(stage, strategy).peak(given.batch)
        command = [sys.executable, __file__, "--row", row, "--network", given.network]
        command += ["--batch", str(given.batch), "--image", str(given.image)]
        done = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True)
        seen = int(done.stdout)
        lines.append((strategy, mib(planned), mib(seen), f"{seen / planned:.2f}"))
        print(*lines[-1], sep=" | ", flush=True)
    title = f"{given.network}, K = {MODULES}, batch {given.batch} of 3×{given.image}×{given.image}"
    made = table(("method", "planned, MiB", "resident, MiB", "resident / planned"), lines)
    print(made)
    if given.write:
        write(__file__, f"{__doc__.strip()}\n\n{title}.", made)


def strategy_of(row: str) -> Strategy:
    """What a row's name stands for."""
    if row == "bp":
        return Strategy.of()
    if row.startswith("segment "):
        return Strategy.of(segment=int(row.split()[1]))
    if row == "bp by blocks":
        return RECOMPUTED
    return HPFF.with_settings(recompute=row)


def resident(workload: Workload, strategy: Strategy, batch: int) -> int:
    """Bytes at the worst moment of a step, as the operating system sees them."""
    torch.manual_seed(0)
    step = TrainingStep(workload.build(), workload, strategy)
    standing = sum(tensor.nbytes for _, tensor in step.standing())
    before = _status("VmRSS")
    images = torch.randn(batch, *workload.image)
    targets = torch.randint(workload.num_classes, (batch,))
    most = 0
    for number in range(STEPS):
        Path("/proc/self/clear_refs").write_text("5")  # forget the most so far
        step.fill_gradients(images, targets)
        step.finish()
        most = max(most, _status("VmHWM")) if number else 0
    return most - before + standing


def _status(what: str) -> int:
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def mib(size: int) -> str:
    """Bytes in MiB."""
    return f"{size / 2**20:.0f}"


if __name__ == "__main__":
    main()
