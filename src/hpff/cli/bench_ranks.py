"""`hpff bench --parallel`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import typer

from hpff.cli.bars import bar
from hpff.cli.tables import print_folded, print_json, show_table
from hpff.cli.workload import RowOptions, described
from hpff.errors import UserError, did_you_mean
from hpff.parallel import processes
from hpff.parallel.benching import (
    HOW,
    How,
    RanksBench,
    RanksRow,
    bench_ranks,
    check_ranks,
    with_peaks,
)
from hpff.runs import machine

_TIMEOUT = 600.0
_HEADER = ("training", "step, ms", "images/s", "over one", "peak, MiB")


def bench_of_ranks(
    given: RowOptions,
    how: str | None,
    ranks: int | None,
    *,
    rounds: int,
    on_cpu: bool,
    json: bool,
    imports: Sequence[str],
) -> None:
    """Measure local learning on several processes beside one, and show the table.

    Args:
        given: the workload and the method.
        how: what is shared out.
        ranks: how many processes, which this one starts unless it is one of them.
        rounds: that are measured.
        on_cpu: whether nothing else was asked for.
        json: whether to print JSON.
        imports: files and modules that the processes import.
    """
    how, ranks = how or "modules", 2 if ranks is None else ranks
    if how not in HOW:
        raise UserError(f"--parallel: is {how!r}, expected modules or data{did_you_mean(how, HOW)}")
    shared: How = "data" if how == "data" else "modules"
    if not on_cpu:
        raise UserError(
            "--parallel: measures processes of the CPU; leave out --device, --compile and "
            "--cuda-graph"
        )
    if given.batch < 2 or rounds < 1:
        raise UserError(
            f"batch is {given.batch} and rounds {rounds}; expected 2 or more, and 1 or more"
        )
    workload, strategy = given.workload(), given.one_strategy()
    if not processes.is_rank():
        check_ranks(workload, strategy, shared, ranks)
        arguments = ["bench", *given.words(), "--parallel", how, "--ranks", str(ranks)]
        arguments += ["--rounds", str(rounds), *(["--json"] if json else [])]
        arguments += [word for each in imports for word in ("--import", each)]
        code = processes.start_ranks(arguments, ranks)
        if code:
            raise typer.Exit(code)
        return
    torch.set_num_threads(max(1, torch.get_num_threads() // ranks))
    turns = (3 if shared == "modules" else 4) * (rounds + 1)
    with processes.joined(ranks, _TIMEOUT) as rank, bar(turns, shown=rank == 0) as observe:
        made = bench_ranks(
            workload,
            batch=given.batch,
            strategy=strategy,
            how=shared,
            rounds=rounds,
            observe=observe,
        )
    if rank == 0:
        _show(with_peaks(made), rounds, json=json)


def _show(made: RanksBench, rounds: int, *, json: bool) -> None:
    if json:
        print_json({**made.to_plain(), "machine": machine.describe()})
        return
    show_table(_HEADER, [_cells(row) for row in made.rows], _caption(made, rounds))
    print_folded(
        "Machine: " + ", ".join(f"{key} {value}" for key, value in machine.describe().items())
    )


def _cells(row: RanksRow) -> list[str]:
    return [
        row.name,
        f"{1000 * row.step_seconds:.1f}",
        f"{row.images_per_second:.1f}",
        f"{row.speedup:.2f}",
        ", ".join(f"{peak / 2**20:.1f}" for peak in row.peaks),
    ]


def _caption(made: RanksBench, rounds: int) -> str:
    ranks = len(made.sizes)
    shared = (
        f"modules of the {ranks} ranks: {', '.join(map(str, made.sizes))}"
        if made.how == "modules"
        else f"each of the {ranks} ranks has such a batch of its own"
    )
    return (
        f"{described(made.workload, made.batch, made.modules)}; {shared}; threads of each process: "
        f"{made.threads}. A step is with the optimizer's; medians of {rounds} rounds with every "
        "training in turns, throughput over that of one process round by round. Peak memory: "
        "planned, of each process, without messages on their way."
    )
