"""Backprop's own gradients in as much memory as there is: the more, the less is computed again.

    python benchmarks/recompute_budget.py [--networks resnet50,...] [--write]

LocalLearner(model, method="bp", recompute="blocks", recompute_budget=...), budgets from 1 upwards,
in steps of a tenth: peak memory of a step (parameters, gradients and SGD's momentum included,
fp32), its arithmetic over backprop's, and after the stroke the bytes that its operations read and
write over backprop's; all counted under fake tensors, so the same on every machine. Networks and
batches are those of backprop_memory.py. Columns: backprop's peak; that of gradient checkpointing
at its best, and what that takes; what the budget takes that computes least within checkpointing's
peak, and within parts of backprop's; the least peak, and what that takes. A second table has local
modules by budget: GiB, and the arithmetic over backprop's. --write puts the tables into
benchmarks/recompute_budget.md and a picture into recompute_budget.png.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from backprop_memory import LARGE, workload_of
from matplotlib.figure import Figure
from memory_tables import gib, table, write
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hpff.errors import UserError
from hpff.memory import RECOMPUTED, Strategy, Workload
from hpff.memory.rehearsal import Rehearsal, Stage, best_checkpointing
from hpff.settings import LIGHT, LocalSettings

STEP = 1.1
PARTS = (0.8, 2 / 3, 0.5, 1 / 3)
LOCAL_BUDGETS = (1, 1.25, 1.5, 2, 3)
LOCAL = {
    "dgl+hpff, light networks": Strategy.of("dgl", 2, 2, **LIGHT),
    "balanced": Strategy(LocalSettings(preset="balanced")),
    "accurate": Strategy(LocalSettings(preset="accurate")),
}
LOCAL_HEADER = ("network", "method", *(f"budget {each}" for each in LOCAL_BUDGETS), "never")
HEADER = (
    "network",
    "backprop, GiB",
    "checkpointing",
    "in its memory",
    *(f"in {part:.2f} of backprop's" for part in PARTS),
    "the least",
)


class Cost(NamedTuple):
    """What a step takes: peak in bytes, arithmetic, and bytes that operations read and write."""

    peak: int
    arithmetic: float
    moved: float

    def over(self, base: Cost) -> Cost:
        """With arithmetic and bytes as parts of another's."""
        return Cost(self.peak, self.arithmetic / base.arithmetic, self.moved / base.moved)

    def __str__(self) -> str:
        return f"{self.arithmetic:.2f} / {self.moved:.2f}"


class Moved(TorchDispatchMode):
    """Counts the bytes that operations read and write; views move none."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        given = {id(t): t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = {id(t): t for t in tree_leaves(output) if isinstance(t, Tensor)}
        storages = {t.untyped_storage()._cdata for t in given.values()}
        looks = all(t.untyped_storage()._cdata in storages for t in made.values())
        if func._schema.is_mutable or not looks:
            self.total += sum(tensor.nbytes for tensor in (given | made).values())
        return output


@dataclass(frozen=True)
class Curve:
    """What a network takes, over backprop.

    Attributes:
        peak: of backprop, in bytes.
        checkpointing: None where the model has no chain of blocks.
        costs: by budget, from the least.
    """

    network: str
    peak: int
    checkpointing: Cost | None
    costs: tuple[Cost, ...]

    def within(self, peak: float) -> str:
        """The least arithmetic in so much memory."""
        fitting = [cost for cost in self.costs if cost.peak <= peak]
        return str(min(fitting, key=lambda cost: cost.arithmetic)) if fitting else ""

    def cells(self) -> tuple[str, ...]:
        """Of a line of the table."""
        usual, least = self.checkpointing, self.costs[0]
        return (
            self.network,
            gib(self.peak),
            f"{gib(usual.peak)}: {usual}" if usual else "",
            self.within(usual.peak) if usual else "",
            *(self.within(part * self.peak) for part in PARTS),
            f"{gib(least.peak)}: {least}",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join((*LARGE, "resnet110")))
    parser.add_argument("--write", action="store_true", help="write recompute_budget.md and .png")
    given = parser.parse_args()
    curves = []
    for name in given.networks.split(","):
        workload, batch = workload_of(name)
        curves.append(_curve(name, Stage(workload), batch))
        print(*curves[-1].cells(), sep=" | ", flush=True)
    made = table(HEADER, (curve.cells() for curve in curves))
    local = table(LOCAL_HEADER, _of_local_modules())
    print(made, local, sep="\n\n")
    if given.write:
        write(__file__, __doc__, made, local)
        _picture(curves).savefig(Path(__file__).with_suffix(".png"), dpi=120)


def _curve(network: str, stage: Stage, batch: int) -> Curve:
    base = _cost(Rehearsal(stage, Strategy.of()), stage, batch)
    costs: list[Cost] = []
    budget = 1.0
    while not costs or (costs[-1].peak < 0.98 * base.peak and costs[-1].arithmetic > 1.0005):
        way = Rehearsal(stage, RECOMPUTED.with_settings(recompute_budget=budget))
        costs.append(_cost(way, stage, batch).over(base))
        budget *= STEP
    usual = None
    with contextlib.suppress(UserError):
        usual = _cost(best_checkpointing(stage, batch)[0], stage, batch).over(base)
    return Curve(network, base.peak, usual, tuple(costs))


def _cost(rehearsal: Rehearsal, stage: Stage, batch: int) -> Cost:
    with stage.entered(), Moved() as moved:
        peak, arithmetic = rehearsal.cost(batch)
    return Cost(peak, arithmetic, moved.total)


def _of_local_modules() -> Iterator[tuple[str, ...]]:
    """The lines of the second table."""
    deep = Workload("resnet110", modules=55), 1024
    large = Workload("resnet101", 8, "memory", image=(3, 224, 224), num_classes=1000), 128
    for workload, batch in (deep, large):
        stage = Stage(workload)
        base = Rehearsal(stage, Strategy.of()).cost(batch)[1]
        for name, strategy in LOCAL.items():
            ways = [
                strategy.with_settings(recompute="blocks", recompute_budget=budget)
                for budget in LOCAL_BUDGETS
            ]
            ways.append(strategy.with_settings(recompute="never"))
            costs = (Rehearsal(stage, way).cost(batch) for way in ways)
            cells = (f"{gib(peak)} / {arithmetic / base:.2f}" for peak, arithmetic in costs)
            modules = len(Rehearsal(stage, ways[0]).step.partition)
            yield (f"{workload.model_name}, K = {modules}", name, *cells)


def _picture(curves: list[Curve]) -> Figure:
    """Arithmetic by memory, of what backprop takes; checkpointing as a cross."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for curve, color in zip(curves, cycle(matplotlib.color_sequences["tab20"]), strict=False):
        parts = [cost.peak / curve.peak for cost in curve.costs]
        again = [cost.arithmetic for cost in curve.costs]
        axes.plot(parts, again, ".-", color=color, label=curve.network, markersize=4, linewidth=1)
        if curve.checkpointing:
            usual = curve.checkpointing
            axes.plot(usual.peak / curve.peak, usual.arithmetic, "x", color=color)
    axes.set(
        xlabel="peak memory of a step, of backprop's (x: gradient checkpointing)",
        ylabel="arithmetic over backprop's",
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


if __name__ == "__main__":
    main()
