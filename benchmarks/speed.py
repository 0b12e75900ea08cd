"""Step time of local learning as a ratio to backprop's, all methods in turns in one run.

    python benchmarks/speed.py [--network resnet32 --modules 16 --batch 64] [--write]

A step is zero_grad, forward and every backward, without the optimizer. Each round runs every
method once; a ratio is the median of the rounds' own ratios, with its quartiles. --write puts the
table into benchmarks/speed.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from hpff import LocalLearner, models
from hpff.training import machine

HERE = Path(__file__).parent
METHODS: dict[str, dict[str, Any]] = {
    "BP": {"method": "bp"},
    "DGL": {"cascade": 1, "patches": 1},
    "DGL+HiLo": {"cascade": 2, "patches": 1},
    "DGL+HPFF": {"cascade": 2, "patches": 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet32")
    parser.add_argument("--modules", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, help="torch's default where not given")
    parser.add_argument("--write", action="store_true", help="write benchmarks/speed.md")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    images, targets = torch.randn(given.batch, 3, 32, 32), torch.randint(10, (given.batch,))
    learners = {
        name: LocalLearner(
            models.create(given.network),
            modules=given.modules,
            example=images[:2],
            num_classes=10,
            **settings,
        )
        for name, settings in METHODS.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in learners}
    for round_number in range(3 + given.rounds):
        for name, learner in learners.items():
            began = time.perf_counter()
            learner.zero_grad()
            learner.backward(images, targets)
            if round_number >= 3:  # the first rounds warm up
                seconds[name].append(time.perf_counter() - began)
    table = _table(seconds)
    print(table)
    if given.write:
        what = (
            f"{given.network}, K = {given.modules}, batch {given.batch}, fp32, "
            f"{torch.get_num_threads()} threads, {given.rounds} rounds."
        )
        (HERE / "speed.md").write_text(f"{__doc__}\n{what}\n\n{table}\n\n{machine.describe()}\n")


def _table(seconds: dict[str, list[float]]) -> str:
    lines = ["| method | step, ms (median) | over BP | quartiles |", "| --- | --- | --- | --- |"]
    for name, times in seconds.items():
        ratios = [mine / base for mine, base in zip(times, seconds["BP"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        lines.append(
            f"| {name} | {1e3 * statistics.median(times):.1f} | {middle:.2f} "
            f"| {low:.2f} to {high:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
