"""What a step of the study's networks takes: backprop in every way, DGL+HPFF, and the presets.

    python benchmarks/study_costs.py [--network resnet32 --modules 16]

Width 8, 128 images of 32×32, planned: peak memory in MiB, and arithmetic over backprop's.
"""

from __future__ import annotations

import argparse
from functools import partial

from memory_tables import table

from hpff import LocalSettings, models
from hpff.memory import RECOMPUTED, Strategy, Workload
from hpff.memory.rehearsal import Rehearsal, Stage, best_checkpointing
from hpff.presets import PRESETS

BATCH = 128
HPFF = Strategy.of("dgl", 2, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet32")
    parser.add_argument("--modules", type=int, default=16)
    given = parser.parse_args()
    build = partial(models.create, given.network, width=8)
    stage = Stage(Workload(build, modules=given.modules))
    presets = [Strategy(LocalSettings(**settings)) for settings in PRESETS.values()]
    plain = [preset.with_settings(recompute="never") for preset in presets]
    strategies = (RECOMPUTED, HPFF, HPFF.with_settings(recompute="once"), *presets, *plain)
    backprop = Rehearsal(stage, Strategy.of())
    checkpointing, _ = best_checkpointing(stage, BATCH)
    _, base = backprop.cost(BATCH)
    lines = []
    for way in (backprop, checkpointing, *(Rehearsal(stage, each) for each in strategies)):
        peak, arithmetic = way.cost(BATCH)
        lines.append((way.strategy, f"{peak / 2**20:.1f}", f"{arithmetic / base:.2f}"))
    print(table((given.network, "peak, MiB", "arithmetic"), lines))


if __name__ == "__main__":
    main()
