"""Backprop's own gradients in as much memory as there is: the more, the less is computed again.

    python benchmarks/recompute_budget.py [--networks resnet50,...] [--write]

LocalLearner(model, method="bp", recompute="blocks", recompute_budget=...), budgets from 1 upwards,
in steps of a tenth: peak memory of a step (parameters, gradients and SGD's momentum included,
fp32) and its arithmetic over backprop's, both counted under fake tensors, so the same on every
machine. Networks and batches are those of backprop_memory.py. Columns: backprop's peak, that of
gradient checkpointing at its best and its arithmetic; then the arithmetic of the budget that
computes least within checkpointing's peak, and within parts of backprop's. --write puts the table
into benchmarks/recompute_budget.md and a picture into recompute_budget.png.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import matplotlib
from backprop_memory import LARGE
from matplotlib.figure import Figure
from memory_tables import gib, table, write

from hpff.errors import UserError
from hpff.memory import RECOMPUTED, Strategy, Workload
from hpff.memory.rehearsal import Rehearsal, Stage, best_checkpointing

STEP = 1.1
PARTS = (0.8, 2 / 3, 0.5, 1 / 3)
HEADER = (
    "network",
    "backprop, GiB",
    "checkpointing",
    "in its memory",
    *(f"in {part:.2f} of backprop's" for part in PARTS),
    "the least",
)
Cost = tuple[int, float]


@dataclass(frozen=True)
class Curve:
    """A network's peaks in bytes, and arithmetic over backprop's.

    Attributes:
        peak: of backprop.
        checkpointing: None where the model has no chain of blocks.
        costs: by budget, from the least.
    """

    network: str
    peak: int
    checkpointing: Cost | None
    costs: tuple[Cost, ...]

    def within(self, peak: float) -> str:
        """The least arithmetic in so much memory."""
        fitting = [arithmetic for needed, arithmetic in self.costs if needed <= peak]
        return f"{min(fitting):.2f}" if fitting else ""

    def cells(self) -> tuple[str, ...]:
        """Of a line of the table."""
        usual = self.checkpointing
        needed, arithmetic = self.costs[0]
        return (
            self.network,
            gib(self.peak),
            f"{gib(usual[0])} / {usual[1]:.2f}" if usual else "",
            self.within(usual[0]) if usual else "",
            *(self.within(part * self.peak) for part in PARTS),
            f"{gib(needed)} / {arithmetic:.2f}",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join((*LARGE, "resnet110")))
    parser.add_argument("--write", action="store_true", help="write recompute_budget.md and .png")
    given = parser.parse_args()
    curves = []
    for name in given.networks.split(","):
        workload, batch = Workload(name), 1024
        if name in LARGE:
            workload, batch = Workload(name, image=(3, 224, 224), num_classes=1000), 128
        curves.append(_curve(name, Stage(workload), batch))
        print(*curves[-1].cells(), sep=" | ", flush=True)
    made = table(HEADER, (curve.cells() for curve in curves))
    print(made)
    if given.write:
        write(__file__, __doc__, made)
        _picture(curves).savefig(Path(__file__).with_suffix(".png"), dpi=120)


def _curve(network: str, stage: Stage, batch: int) -> Curve:
    peak, base = Rehearsal(stage, Strategy.of()).cost(batch)
    costs: list[Cost] = []
    budget = 1.0
    while not costs or (costs[-1][0] < 0.98 * peak and costs[-1][1] > 1.0005):
        strategy = RECOMPUTED.with_settings(recompute_budget=budget)
        needed, arithmetic = Rehearsal(stage, strategy).cost(batch)
        costs.append((needed, arithmetic / base))
        budget *= STEP
    try:
        usual, more = best_checkpointing(stage, batch)[0].cost(batch)
    except UserError:
        return Curve(network, peak, None, tuple(costs))
    return Curve(network, peak, (usual, more / base), tuple(costs))


def _picture(curves: list[Curve]) -> Figure:
    """Arithmetic by memory, of what backprop takes; checkpointing as a cross."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for curve, color in zip(curves, cycle(matplotlib.color_sequences["tab20"]), strict=False):
        parts = [needed / curve.peak for needed, _ in curve.costs]
        again = [arithmetic for _, arithmetic in curve.costs]
        axes.plot(parts, again, ".-", color=color, label=curve.network, markersize=4, linewidth=1)
        if curve.checkpointing:
            needed, arithmetic = curve.checkpointing
            axes.plot(needed / curve.peak, arithmetic, "x", color=color)
    axes.set(
        xlabel="peak memory of a step, of backprop's (x: gradient checkpointing)",
        ylabel="arithmetic over backprop's",
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


if __name__ == "__main__":
    main()
