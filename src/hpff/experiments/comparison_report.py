"""A comparison as a table, in Markdown and as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpff.errors import one_line
from hpff.experiments.comparison import Row
from hpff.recipes.recipe import Recipe
from hpff.runs import machine
from hpff.runs.atomic_files import write_atomically
from hpff.runs.markdown import escaped
from hpff.settings import BASELINE

_COSTS = ("peak memory", "× BP", "step time", "× BP")


def header(rows: Sequence[Row]) -> tuple[str, ...]:
    """The titles of the columns."""
    scores = ("mIoU %", "pixel error %") if _is_dense(rows) else ("test error %",)
    return ("method", *scores, *_COSTS)


def cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """One tuple of texts a row, under `header`; ratios are `–` where BP is not among the rows."""
    base = _baseline(rows)
    return [
        (
            row.label,
            *([_over_seeds(row.mious)] if _is_dense(rows) else []),
            _over_seeds(row.errors),
            megabytes(row.peak_memory_bytes),
            f"{row.peak_memory_bytes / base.peak_memory_bytes:.2f}" if base else "–",
            f"{1000 * row.step_seconds:.1f} ms",
            f"{row.step_seconds / base.step_seconds:.2f}" if base else "–",
        )
        for row in rows
    ]


def notes(
    recipe: Recipe, seeds: Sequence[int], rows: Sequence[Row], faults: Sequence[str] = ()
) -> list[str]:
    """The caption, rows of fewer seeds than the others, and the runs that failed."""
    fewer = [f"{row.label} ({len(row.errors)})" for row in rows if len(row.errors) < len(seeds)]
    return [
        caption(recipe, rows),
        *([f"Of fewer seeds: {', '.join(fewer)}."] if fewer else []),
        *(f"Failed: {fault}" for fault in faults),
    ]


def caption(recipe: Recipe, rows: Sequence[Row]) -> str:
    """What the numbers are, in one line."""
    seeds = max(len(row.errors) for row in rows)
    what = "mIoU, whole images at a single scale," if _is_dense(rows) else "test error"
    over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    memory = {
        "counted": "counted, tensor by tensor",
        "allocator": "the CUDA allocator's peak without the data set",
    }[rows[0].peak_memory_source]
    return one_line(
        f"{recipe.model.name} on {recipe.data}, {recipe.epochs} epochs, batch "
        f"{recipe.batch_size}: {what} of the last epoch ({over}); peak memory of a training "
        f"step ({memory}); median step time."
    )


def as_json(
    name: str,
    recipe: Recipe,
    seeds: Sequence[int],
    rows: Sequence[Row],
    faults: Sequence[str] = (),
) -> dict[str, Any]:
    """All numbers, the recipe and the machine."""
    base = _baseline(rows)
    return {
        "recipe_name": name,
        "caption": caption(recipe, rows),
        "seeds": list(seeds),
        "rows": [_row_as_json(row, base) for row in rows],
        "failed": list(faults),
        "recipe": recipe.to_plain(),
        "machine": machine.describe(),
    }


def as_markdown(
    recipe: Recipe, seeds: Sequence[int], rows: Sequence[Row], faults: Sequence[str] = ()
) -> str:
    """The table, what is to be said of it, and the machine."""
    titles = header(rows)
    lines = [titles, ("---",) + ("---:",) * (len(titles) - 1), *cells(rows)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    where = ", ".join(f"{key} {value}" for key, value in machine.describe().items())
    said = "\n".join(map(escaped, notes(recipe, seeds, rows, faults)))
    return f"{table}\n\n{said}\nMachine: {where}.\n"


def write(
    out: Path,
    name: str,
    recipe: Recipe,
    seeds: Sequence[int],
    rows: Sequence[Row],
    faults: Sequence[str] = (),
) -> None:
    """Put `results.md` and `results.json` into the comparison's folder."""
    write_atomically(out / "results.md", as_markdown(recipe, seeds, rows, faults).encode())
    content = json.dumps(as_json(name, recipe, seeds, rows, faults), indent=2) + "\n"
    write_atomically(out / "results.json", content.encode())


def megabytes(count: int) -> str:
    """Bytes as MiB."""
    return f"{count / 2**20:.1f} MiB"


def _is_dense(rows: Sequence[Row]) -> bool:
    return any(row.mious for row in rows)


def _over_seeds(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def _baseline(rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if row.label == BASELINE), None)


def _row_as_json(row: Row, base: Row | None) -> dict[str, Any]:
    return {
        "method": row.label,
        "test_error_percent": row.error,
        "spread_percent": row.spread,
        "errors_percent": list(row.errors),
        **({"miou_percent": list(row.mious)} if row.mious else {}),
        "peak_memory_bytes": row.peak_memory_bytes,
        "peak_memory_source": row.peak_memory_source,
        "peak_memory_to_bp": row.peak_memory_bytes / base.peak_memory_bytes if base else None,
        "step_seconds": row.step_seconds,
        "step_seconds_to_bp": row.step_seconds / base.step_seconds if base else None,
    }
