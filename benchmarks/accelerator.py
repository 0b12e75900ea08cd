"""Step time and memory on a CUDA device: every network, precision and way to run, side by side.

    python benchmarks/accelerator.py [--cases resnet32-bf16-graph,...] [--out runs/accelerator]
                                     [--rounds 10] [--device cuda] [--batch B]
    python benchmarks/accelerator.py --plan runs/accelerator --write

A step is forward and every backward, without the optimizer; the time over backprop's is the median
of the rounds' own ratios, all methods in turns; "eager", replayed as CUDA graphs ("graph"), or
compiled and replayed as CUDA graphs ("compiled", a case for each method beside backprop). Every
case has a process: they build side by side and are timed one after another. Checkpointing
recomputes as many blocks together as are in brackets. Peak memory is the allocator's, with
parameters, gradients and momentum. The second line, which needs no device, sets the planned peak
beside it, and with --write puts the table into benchmarks/accelerator.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hpff import models
from hpff.memory import RECOMPUTED, Strategy, Workload, bench, plan
from hpff.runs import machine
from hpff.settings import LIGHT, LocalSettings

HERE = Path(__file__).parent
_WAYS = ("eager", "graph", "compiled")
DGL, HPFF = Strategy.of("dgl"), Strategy.of("dgl", 2, 2)
LEAN = Strategy.of("dgl", 2, 2, recompute="blocks", **LIGHT)
BY_BLOCKS = (RECOMPUTED, *(RECOMPUTED.with_settings(recompute_budget=each) for each in (2, 3)))
ACCURATE = Strategy(LocalSettings(preset="accurate"))
QUICK = (DGL, HPFF, ACCURATE.with_settings(recompute="never"))  # No recomputation.
STREAMED = (
    DGL.with_settings(streams=4),
    HPFF.with_settings(streams=4),
    ACCURATE.with_settings(recompute="never", streams=3),
)
CIFAR = (Strategy.of(), *QUICK, HPFF.with_settings(recompute="once"), ACCURATE, *STREAMED)
RENTED = (HPFF, Strategy.of("dgl", 2, 2, **LIGHT), LEAN)


@dataclasses.dataclass(frozen=True)
class Network:
    """A workload, its batch, what it is trained by, and the ways to run it."""

    workload: Workload
    batch: int
    strategies: tuple[Strategy, ...]
    ways: tuple[str, ...]


def _vit() -> torch.nn.Module:
    return models.create("timm/vit_base_patch16_224", 1000)


NETWORKS = {
    "resnet32": Network(Workload("resnet32", 16), 1024, CIFAR, _WAYS),
    "resnet110": Network(Workload("resnet110", 55), 1024, CIFAR, _WAYS),
    "resnet101": Network(
        Workload("resnet101", 4, balance="memory", image=(3, 224, 224), num_classes=1000),
        64,
        (Strategy.of(), Strategy.of(segment=2), *BY_BLOCKS, *RENTED),
        _WAYS[:2],
    ),
    "vit_b16": Network(
        Workload(partial(_vit), 12, image=(3, 224, 224), num_classes=1000),
        64,
        (Strategy.of(), Strategy.of(segment=1), *BY_BLOCKS, *RENTED),
        _WAYS[:2],
    ),
}


def cases() -> list[str]:
    found = []
    for name, network in NETWORKS.items():
        for precision in ("fp32", "bf16"):
            for way in network.ways:
                case = f"{name}-{precision}-{way}"
                compiled = range(len(QUICK)) if way == "compiled" else ()
                found += [f"{case}-{number}" for number in compiled] or [case]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(cases()))
    parser.add_argument("--out", type=Path, default=Path("runs/accelerator"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cuda", help="cpu to rehearse")
    parser.add_argument("--batch", type=int, help="by default the network's")
    parser.add_argument("--one", help="measure this case, when this many are built")
    parser.add_argument("--together", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--plan", type=Path, metavar="FOLDER")
    parser.add_argument("--write", action="store_true", help="write benchmarks/accelerator.md")
    given = parser.parse_args()
    if given.plan:
        made = table(given.plan)
        print(made)
        if given.write:
            write(made, given.plan)
        return
    given.out.mkdir(parents=True, exist_ok=True)
    if given.one:
        turn = Turn(given.one, given.out, given.together)
        measure(given.one, turn, given.rounds, given.device, given.batch)
        return
    names = given.cases.split(",")
    for file in given.out.glob("*.ready"):
        file.unlink()
    same = [f"--out={given.out}", f"--rounds={given.rounds}", f"--device={given.device}"]
    same += [f"--batch={given.batch}"] if given.batch else []
    command = [sys.executable, __file__, *same, f"--together={len(names)}", "--one"]
    running = {name: subprocess.Popen([*command, name]) for name in names}
    while any(process.poll() is None for process in running.values()):
        for name, process in running.items():
            if process.poll() is not None:
                (given.out / f"{name}.ready").touch()  # Whoever failed is not waited for.
        time.sleep(0.2)


class Turn:
    """Waits until every case is built, and then for its own turn."""

    def __init__(self, case: str, out: Path, together: int) -> None:
        self.case, self.out, self._together = case, out, together
        self._lock = (out / "lock").open("w")
        self._has = False

    def take(self) -> None:
        """Wait, the first time."""
        if self._has:
            return
        (self.out / f"{self.case}.ready").touch()
        while len(list(self.out.glob("*.ready"))) < self._together:
            time.sleep(0.1)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._has = True


def measure(case: str, turn: Turn, rounds: int, device: str, batch: int | None) -> None:
    """Build and warm up beside the others; be timed alone."""
    name, precision, way, *number = case.split("-")
    network = NETWORKS[name]
    strategies = (Strategy.of(), QUICK[int(number[0])]) if number else network.strategies
    workload = dataclasses.replace(network.workload, precision=precision)  # type: ignore[arg-type]
    made = bench(
        workload,
        batch=batch or network.batch,
        strategies=strategies,
        rounds=rounds,
        device=device,
        compiled=way == "compiled",
        cuda_graph=way != "eager" and device == "cuda",
        observe=lambda label: None if label.endswith("setting up") else turn.take(),
    )
    plain = {**made.to_plain(), "timed_alone": True, "machine": machine.describe()}
    (turn.out / f"{case}.json").write_text(json.dumps(plain, indent=1))
    for row in made.rows:
        seconds = f"{1e3 * row.step_seconds:8.2f} ms" if row.seconds else row.fault
        ratio = f"{row.quartiles()[1]:.2f}" if row.seconds else ""
        print(case, row.strategy, seconds, ratio, row.peak and f"{row.peak / 2**30:.2f} GiB")


def table(folder: Path) -> str:
    columns = ["network", "precision", "method"]
    for way in _WAYS:
        columns += (f"{way}, ms", "over bp")
    columns += ("peak, GiB", "planned, GiB", "over planned")
    lines = [f"| {' | '.join(columns)} |", "| --- | --- | ---" + " | ---:" * 9 + " |"]
    for name, network in NETWORKS.items():
        for precision in ("fp32", "bf16"):
            known: dict[str, Strategy] = {}
            found = {
                way: _rows(sorted(folder.glob(f"{name}-{precision}-{way}*.json")), network, known)
                for way in _WAYS
            }
            if not known:
                continue
            workload = dataclasses.replace(network.workload, precision=precision)  # type: ignore[arg-type]
            planned = plan(workload, batch=network.batch, strategies=[*known.values()]).rows
            for label, row in zip(known, planned, strict=True):
                mine = {way: rows.get(label) for way, rows in found.items()}
                lines.append(_line(f"{name} | {precision} | {label}", mine, row.peak))
    return "\n".join(lines)


def _label(strategy: Strategy) -> str:
    light = strategy.settings.auxiliary_width is not None and not strategy.settings.preset_name()
    return f"{strategy}, light networks" if light else str(strategy)


def _rows(
    files: list[Path], network: Network, known: dict[str, Strategy]
) -> dict[str, dict[str, Any]]:
    """The rows of a way by label, which are added to those that are known.

    They have no times where other work was timed too.
    """
    rows: dict[str, dict[str, Any]] = {}
    for file in files:
        found = json.loads(file.read_text())
        untimed = {} if found.get("timed_alone") else {"step_seconds": None}
        for row in found["rows"]:
            strategy = _recorded(row, (*network.strategies, *QUICK))
            label = _label(strategy)
            known.setdefault(label, strategy)
            rows[label] = {**row, **untimed}
    return rows


def _recorded(row: dict[str, Any], known: Sequence[Strategy]) -> Strategy:
    """The strategy that a row was measured with."""
    for each in known:
        strategy = dataclasses.replace(each, segment=row["segment"])
        if all(row[key] == value for key, value in strategy.to_plain().items()):
            return strategy
    raise SystemExit(f"{row['label']}: was measured with settings that are none of today's")


def _line(start: str, found: dict[str, dict[str, Any] | None], planned: int | None) -> str:
    cells = [start]
    for row in found.values():
        cells += (
            [f"{1e3 * row['step_seconds']:.1f}", f"{row['over_first_quartiles'][1]:.2f}"]
            if row is not None and row["step_seconds"]
            else ["", ""]
        )
    peaks = [row["peak_bytes"] for way, row in found.items() if row and way != "compiled"]
    peak = next(filter(None, peaks), None)
    cells.append(f"{peak / 2**30:.2f}" if peak else "")
    cells.append(f"{planned / 2**30:.2f}" if planned else "")
    cells.append(f"{peak / planned:.3f}" if peak and planned else "")
    return f"| {' | '.join(cells)} |"


def write(made: str, folder: Path) -> None:
    """Write the table, above what is said there."""
    path = HERE / "accelerator.md"
    said = path.read_text().partition("\n## ")[2] if path.exists() else ""
    first = next(iter(sorted(folder.glob("*.json"))))
    found = json.loads(first.read_text())["machine"]
    about = ", ".join(f"{key} {value}" for key, value in found.items())
    rest = f"\n## {said}" if said else ""
    path.write_text(f"{__doc__}\n{made}\n\nMachine: {about}.\n{rest}")


if __name__ == "__main__":
    main()
