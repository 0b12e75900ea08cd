"""What the tables of planned memory share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from hpff.memory import Row
from hpff.runs import machine


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def peak(row: Row) -> int:
    """Bytes; a strategy of training that cannot be planned is a fault of the benchmark."""
    assert row.peak is not None, f"{row.strategy}: {row.fault}"
    return row.peak


def gib(size: int) -> str:
    """Bytes in GiB."""
    return f"{size / 2**30:.2f}"


def write(script: str, document: str | None, *tables: str) -> None:
    """Put a script's docstring, its tables and the machine into the .md file beside it."""
    described = ", ".join(f"{key} {value}" for key, value in machine.describe().items())
    text = "\n\n".join([(document or "").strip(), *tables, described])
    Path(script).with_suffix(".md").write_text(f"{text}\n")
