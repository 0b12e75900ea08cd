"""How should the two levels and their auxiliary networks be weighted? A sweep on CIFAR-10.

    python benchmarks/level_weights.py --out runs/level_weights [--studies dgl,dgl-n1,...]

Trains benchmarks/cifar10_short.yaml for 5 epochs with every setting, study and seed, and prints a
table for each study. The default's total, ratio and rate of the auxiliary networks are changed one
at a time. Finished runs are kept, so that the sweep can be stopped and started again.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from short_runs import error_of

from hpff.recipes import files as recipe_files
from hpff.runs import machine

HERE = Path(__file__).parent
EPOCHS = 5


@dataclass(frozen=True)
class Setting:
    """The weights of both levels by their sum and ratio, and that of the auxiliary networks."""

    total: float
    ratio: float
    auxiliary: float | str

    def changes(self) -> dict[str, float | str]:
        cascade = self.total / (1 + self.ratio)
        return {
            "independent_weight": self.total - cascade,
            "cascade_weight": cascade,
            "auxiliary_weight": self.auxiliary,
        }

    def __str__(self) -> str:
        return f"total{self.total:g}-ratio{self.ratio:g}-auxiliary-{self.auxiliary}"


BASE = Setting(1.1, 0.1, 1.0)
ONE_BY_ONE = (BASE, Setting(1.1, 1.0, 1.0), Setting(1.1, 0.1, "level"))
TOTALS = (Setting(0.5, 0.1, 1.0), Setting(2.0, 0.1, 1.0), Setting(2.0, 1.0, 1.0))
CROSSED = Setting(1.1, 1.0, "level")


@dataclass(frozen=True)
class Study:
    """A label, changes of the recipe, and what is tried there."""

    label: str
    settings: tuple[Setting, ...]
    changes: tuple[str, ...] = ()


STUDIES = {
    "dgl": Study("dgl+hpff", (*ONE_BY_ONE, *TOTALS)),
    "dgl-n1": Study("dgl+hilo", (*ONE_BY_ONE, CROSSED, Setting(2.0, 1.0, 1.0))),
    "dgl-k16": Study("dgl+hpff", ONE_BY_ONE, ("model={name: resnet32, width: 8}", "modules=16")),
    "infopro": Study(
        "infopro+hpff", ONE_BY_ONE, ("modules=5", "subset=5000", "patch_mode=together")
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--studies", default=",".join(STUDIES))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("overrides", nargs="*", help="key=value, as for hpff train")
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    for name in given.studies.split(","):
        print(f"## {name}\n\n{_table(name, seeds, given.out, given.overrides)}\n", flush=True)
    print(machine.describe())


def _table(name: str, seeds: list[int], out: Path, overrides: list[str]) -> str:
    study = STUDIES[name]
    base = recipe_files.load(
        str(HERE / "cifar10_short.yaml"), [f"epochs={EPOCHS}", *study.changes, *overrides]
    )
    errors: dict[Setting, list[float]] = {}
    for seed in seeds:
        for setting in study.settings:
            path = out / name / f"{setting}-seed{seed}"
            error = error_of(study.label, base, setting.changes(), seed, path)
            errors.setdefault(setting, []).append(error)
            print(f"{name} {setting} seed {seed}: {error:.2f} %", time.strftime("%X"), flush=True)
    lines = [
        "| total | independent / cascade | auxiliary networks | test error, % | spread |",
        "| --- | --- | --- | --- | --- |",
    ]
    for setting, found in errors.items():
        spread = f"{statistics.stdev(found):.2f}" if len(found) > 1 else "-"
        lines.append(
            f"| {setting.total:g} | {setting.ratio:g} | {setting.auxiliary} "
            f"| {statistics.fmean(found):.2f} | {spread} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
