"""`hpff plan`."""

from __future__ import annotations

from pathlib import Path

from hpff.cli.bars import bar
from hpff.cli.sizes import Unit, bytes_of, unit_for
from hpff.cli.tables import print_folded, print_json, show_table
from hpff.cli.workload import RowOptions, described
from hpff.errors import UserError
from hpff.memory import Plan, Row
from hpff.memory import plan as plan_memory
from hpff.memory.ledger import Owner
from hpff.runs.atomic_files import write_atomically

# Soft hyphens are where a narrow table cuts them.
SHARES = ("activa\u00adtions", "auxil\u00adiary", "back\u00adward")
_PICTURES = ("png", "svg", "pdf")


def plan(given: RowOptions, budget_text: str | None, picture: Path | None, *, json: bool) -> None:
    """Plan, and show the cut, the table, and perhaps the picture."""
    workload = given.workload()
    budget = None if budget_text is None else bytes_of(budget_text)
    if picture is not None and picture.suffix[1:] not in _PICTURES:
        raise UserError(f"--plot: is {picture}, expected a name that ends in .png, .svg or .pdf")
    if picture is not None and not picture.parent.is_dir():
        raise UserError(f"--plot: is {picture}, expected a folder that exists")
    strategies = given.strategies(first=True)
    with bar(len(strategies) + 1) as observe:
        made = plan_memory(
            workload, batch=given.batch, strategies=strategies, budget=budget, observe=observe
        )
    if picture is not None:
        from hpff.memory.picture import draw

        write_atomically(picture, draw(made, picture.suffix[1:]))
    if json:
        print_json(made.to_plain())
        return
    print(made.partition)
    _show(made)
    if picture is not None:
        print(f"{picture}: memory over the step")


def _show(made: Plan) -> None:
    unit = unit_for(max(row.peak or 0 for row in made.rows))
    header = ["method", "peak", "of bp", "held", *SHARES]
    if made.budget is not None:
        header.append("largest batch")
    base = next((row.peak for row in made.rows if row.peak and str(row.strategy) == "bp"), None)
    done = [row for row in made.rows if row.peak is not None]
    show_table(header, [_cells(row, base, unit) for row in done], _caption(made, unit))
    print("The worst moment, and the largest parts of what is alive then:")
    for row in done:
        parts = (f"{_owner(owner)} {unit.of(bytes_)}" for owner, bytes_ in row.alive[:5])
        print_folded(f"  {row.strategy}: {row.moment}: {', '.join(parts)}", "    ")
    for row in made.rows:
        if row.fault:
            print_folded(f"  {row.strategy}: not possible: {row.fault}", "    ")


def _caption(made: Plan, unit: Unit) -> str:
    text = (
        f"Peak memory of a training step in {unit.name}, and what it is made of: "
        f"{described(made.workload, made.batch, len(made.partition))}. "
        "Held: parameters, gradients, optimizer, inputs. Backward: cotangents and temporaries. "
        "Checkpointing recomputes as many blocks together as are in brackets, at its best. "
        "Scratch space inside kernels is not counted."
    )
    if any(row.strategy.settings.streams > 1 for row in made.rows):
        text += " Backward also holds what streams keep for themselves."
    if made.budget is not None:
        text += f" Largest batch: within {unit.of(made.budget)} {unit.name}."
    return text


def _owner(owner: Owner) -> str:
    return f"{owner.what} of {owner.module}" if owner.module else owner.what


def _cells(row: Row, base: int | None, unit: Unit) -> list[str]:
    assert row.peak is not None
    cells = [
        str(row.strategy),
        unit.of(row.peak),
        f"{row.peak / base:.2f}" if base else "-",
        unit.of(row.alive_of("parameters", "buffers", "gradients", "optimizer", "inputs")),
        unit.of(row.alive_of("activations", "recomputed")),
        unit.of(row.alive_of("auxiliary")),
        unit.of(row.alive_of("cotangents", "streams", "other")),
    ]
    if row.largest_batch is not None:
        cells.append(str(row.largest_batch or "none"))
    return cells
