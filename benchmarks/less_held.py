"""What else makes a step lighter: each means alone, and all together.

    python benchmarks/less_held.py [--network resnet101 --modules 8] [--write]

Planned peak memory in GiB of DGL+HPFF (k = 2, n = 2, light auxiliary networks, cuts by memory), 128
images of 224×224, SGD with momentum; counted under fake tensors, so the same on every machine.
"Held" are parameters, gradients, the optimizer's state and the images, as many as there are at the
peak. --write puts the table into benchmarks/less_held.md.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from memory_tables import gib, peak, table, write

from hpff.memory import Strategy, Workload, plan
from hpff.settings import LIGHT

HPFF = Strategy.of("dgl", 2, 2, **LIGHT)
BLOCKS = HPFF.with_settings(recompute="blocks")
HEADER = ("means", "1,000 classes", "of it held", "21,841 classes", "of it held")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet101")
    parser.add_argument("--modules", type=int, default=8)
    parser.add_argument("--write", action="store_true", help="write benchmarks/less_held.md")
    given = parser.parse_args()
    usual = Workload(given.network, modules=given.modules, balance="memory", image=(3, 224, 224))
    stepped, short = replace(usual, step_per_module=True), replace(usual, precision="bf16")
    chunked = replace(usual, chunk=16)
    all_of_them = replace(usual, step_per_module=True, precision="bf16", chunk=16)
    rows = {
        "none": (usual, HPFF),
        "each module stepped as soon as it is done (`step_per_module`)": (stepped, HPFF),
        "bf16 (`precision`)": (short, HPFF),
        "the loss in chunks of 16 (`ChunkedCrossEntropy`)": (chunked, HPFF),
        'recomputation (`recompute="blocks"`)': (usual, BLOCKS),
        "all of them": (all_of_them, BLOCKS),
    }
    lines = []
    for means, (workload, strategy) in rows.items():
        cells = []
        for classes in (1000, 21841):
            (row,) = plan(
                replace(workload, num_classes=classes), batch=128, strategies=[strategy]
            ).rows
            held = row.alive_of("parameters", "buffers", "gradients", "optimizer", "inputs")
            cells += [gib(peak(row)), gib(held)]
        lines.append((means, *cells))
        print(*lines[-1], sep=" | ", flush=True)
    made = table(HEADER, lines)
    print(made)
    if given.write:
        write(__file__, __doc__, made)


if __name__ == "__main__":
    main()
