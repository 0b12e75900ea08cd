"""What every method costs: peak memory and step time, with and without HPFF, beside backprop.

    python benchmarks/methods.py [--rounds 5] [--write]

Memory: planned without a device, fp32, batch 1024, gradients and SGD's momentum included. Step
time: measured at batch 64 on this machine, all methods in turns, forward and every backward; the
median of the rounds' own ratios to backprop. Each method has the settings published for the
network. --write puts the table into benchmarks/methods.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hpff.memory import Workload, bench, default_strategies, plan
from hpff.runs import machine

HERE = Path(__file__).parent
NETWORKS = {"resnet32": 16, "resnet110": 55}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write benchmarks/methods.md")
    given = parser.parse_args()
    lines = ["| network | method | peak, GiB | of bp | step over bp |", "| --- |" + " --- |" * 4]
    for network, modules in NETWORKS.items():
        workload = Workload(network, modules)
        planned = plan(workload, batch=1024, strategies=default_strategies()).rows
        strategies = [row.strategy for row in planned]
        measured = bench(workload, batch=64, strategies=strategies, rounds=given.rounds).rows
        base = planned[0].peak or 1
        for row, time in zip(planned, measured, strict=True):
            peak = row.peak or 0
            lines.append(
                f"| {network}, K = {modules} | {row.strategy} | {peak / 2**30:.2f} "
                f"| {peak / base:.2f} | {time.quartiles()[1]:.2f} |"
            )
    table = "\n".join(lines)
    print(table)
    if given.write:
        (HERE / "methods.md").write_text(f"{__doc__}\n{table}\n\n{machine.describe()}\n")


if __name__ == "__main__":
    main()
