"""Step time of local learning as a ratio to backprop's, all methods in turns in one run.

    python benchmarks/speed.py [--network resnet32 --modules 16 --batch 64] [--write]

A step is forward and every backward, without the optimizer. Each round runs every method once; a
ratio is the median of the rounds' own ratios, with its quartiles. --write puts the table into
benchmarks/speed.md. `hpff bench resnet32 --batch 64` measures the same for every method.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from hpff.memory import Bench, Strategy, Workload, bench
from hpff.runs import machine

HERE = Path(__file__).parent
HPFF = Strategy.of("dgl", cascade=2, patches=2)
STRATEGIES = (
    Strategy.of(),
    Strategy.of("dgl"),
    Strategy.of("dgl", cascade=2),
    HPFF,
    HPFF.with_settings(recompute="once"),
    HPFF.with_settings(recompute="repeatedly"),
)


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
    workload = Workload(given.network, given.modules)
    made = bench(workload, batch=given.batch, strategies=STRATEGIES, rounds=given.rounds)
    text = table(made)
    print(text)
    if given.write:
        what = (
            f"{given.network}, K = {given.modules}, batch {given.batch}, fp32, "
            f"{torch.get_num_threads()} threads, {given.rounds} rounds."
        )
        (HERE / "speed.md").write_text(f"{__doc__}\n{what}\n\n{text}\n\n{machine.describe()}\n")


def table(made: Bench) -> str:
    lines = ["| method | step, ms (median) | over bp | quartiles |", "| --- | --- | --- | --- |"]
    for row in made.rows:
        low, middle, high = row.quartiles()
        step = f"{1e3 * row.step_seconds:.1f}"
        lines.append(f"| {row.strategy} | {step} | {middle:.2f} | {low:.2f} to {high:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
