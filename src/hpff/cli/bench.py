"""`hpff bench`."""

from __future__ import annotations

from hpff.cli.bars import bar
from hpff.cli.tables import print_folded, print_json, show_table
from hpff.cli.workload import RowOptions, described
from hpff.errors import UserError, did_you_mean
from hpff.memory import Bench, Measured
from hpff.memory import bench as measure
from hpff.runs import machine
from hpff.training.setup import choose_device

_DEVICES = ("auto", "cpu", "cuda")


def bench(
    given: RowOptions,
    *,
    rounds: int,
    device: str,
    compiled: bool,
    cuda_graph: bool,
    json: bool,
) -> None:
    """Column, and show the table and the machine."""
    workload = given.workload()
    if device not in _DEVICES:
        hint = did_you_mean(device, _DEVICES)
        raise UserError(f"--device: is {device!r}, expected auto, cpu or cuda{hint}")
    chosen = choose_device(device).type
    strategies = given.strategies()
    with bar(len(strategies) * (rounds + 1)) as observe:
        made = measure(
            workload,
            batch=given.batch,
            strategies=strategies,
            rounds=rounds,
            device=chosen,
            compiled=compiled,
            cuda_graph=cuda_graph,
            observe=observe,
        )
    if json:
        print_json({**made.to_plain(), "machine": machine.describe()})
        return
    show_table(
        ("method", "step, ms", "over bp", "quartiles", "peak, MiB", "of bp"),
        [_cells(row, made.rows[0]) for row in made.rows if not row.fault],
        _caption(made, rounds),
    )
    for row in made.rows:
        if row.fault:
            print_folded(f"{row.strategy}: not possible: {row.fault}", "  ")
    print_folded(
        "Machine: " + ", ".join(f"{key} {value}" for key, value in machine.describe().items())
    )


def _cells(row: Measured, first: Measured) -> list[str]:
    low, middle, high = row.quartiles()
    return [
        str(row.strategy),
        f"{1000 * row.step_seconds:.1f}",
        f"{middle:.2f}",
        f"{low:.2f} to {high:.2f}",
        "-" if row.peak is None else f"{row.peak / 2**20:.1f}",
        "-" if row.peak is None or not first.peak else f"{row.peak / first.peak:.2f}",
    ]


def _caption(made: Bench, rounds: int) -> str:
    source = {
        "counted": "every tensor counted, in a step of its own",
        "allocator": "the allocator's in an eager step, less what the other methods hold",
    }[made.peak_source]
    if made.peak_source == "allocator" and any(r.strategy.settings.streams > 1 for r in made.rows):
        source += "; with several streams what it has reserved"
    compiled = "backprop compiled whole, local methods by parts" if made.compiled else "eager"
    compiled += ", replayed as CUDA graphs" if made.cuda_graph else ""
    return (
        f"{described(made.workload, made.batch, made.modules)}, {made.device}, {compiled}. "
        f"Step: forward and every backward, the optimizer left out; medians of {rounds} rounds "
        f"with every method in turns, ratios round by round. Peak memory: {source}."
    )
