"""`hpff plan --ranks`."""

from __future__ import annotations

from hpff.cli.bars import bar
from hpff.cli.plan import SHARES
from hpff.cli.sizes import Unit, unit_for
from hpff.cli.tables import print_folded, print_json, show_table
from hpff.cli.workload import RowOptions, described
from hpff.errors import UserError
from hpff.parallel.planning import RankRow, RanksPlan, plan_ranks

_HEADER = ("rank", "mod\u00adules", "peak", "held", *SHARES)
_SENT = ("wait\u00ading", "sent on", "sent back", "work")


def plan_of_ranks(given: RowOptions, ranks: int, *, alone: bool, json: bool) -> None:
    """Plan every rank of a module-parallel training, and show the table.

    Args:
        given: the workload and the method.
        ranks: how many.
        alone: whether nothing else was asked for.
        json: whether to print JSON.
    """
    if not alone:
        raise UserError("--ranks: goes without --budget and --plot, which are of one device")
    workload, strategy = given.workload(), given.one_strategy()
    with bar(ranks + 1) as observe:
        made = plan_ranks(
            workload, batch=given.batch, strategy=strategy, ranks=ranks, observe=observe
        )
    if json:
        print_json(made.to_plain())
        return
    print(made.partition)
    _show(made)


def _show(made: RanksPlan) -> None:
    unit = unit_for(max(made.alone, *(row.peak for row in made.rows)))
    work = sum(row.arithmetic for row in made.rows)
    rows = []
    for rank, row in enumerate(made.rows):
        cells = [unit.of(count) for count in _bytes(row)]
        rows.append([str(rank), f"{row.first}-{row.last}", *cells, f"{row.arithmetic / work:.1%}"])
    show_table(_HEADER + _SENT, rows, _caption(made, unit))
    print_folded(
        f"Expected throughput: {made.speedup:.2f} times that of one process, if links carry in "
        "each step what is sent."
    )


def _bytes(row: RankRow) -> list[int]:
    held = row.alive_of("parameters", "buffers", "gradients", "optimizer", "inputs")
    activations = row.alive_of("activations", "recomputed")
    backward = row.alive_of("cotangents", "other")
    sent = row.waiting, row.sends_on, row.sends_back
    return [row.peak, held, activations, row.alive_of("auxiliary"), backward, *sent]


def _caption(made: RanksPlan, unit: Unit) -> str:
    return (
        f"Memory of each rank and traffic of a step in {unit.name}: "
        f"{described(made.workload, made.batch, len(made.partition))}, {made.strategy}, every "
        f"module stepped when it is done; one process takes {unit.of(made.alone)} {unit.name}. "
        "Waiting: what messages take besides, at most. Modules are shared out by arithmetic; a "
        "training measures time."
    )
