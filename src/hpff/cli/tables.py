"""Tables on the terminal, or JSON."""

from __future__ import annotations

import json as json_format
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def show_list(entries: Sequence[tuple[str, str]], *, json: bool) -> None:
    """Print names and their one-line descriptions."""
    if json:
        print_json([{"name": name, "description": text} for name, text in entries])
    elif entries:
        show_table(("name", "description"), entries)
    else:
        print("none yet")


def show_table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> None:
    """Print a table; all columns but the first are right-aligned if there are more than two."""
    table = Table(box=box.SIMPLE_HEAD, caption=caption or None, caption_justify="left")
    for index, name in enumerate(header):
        right = index > 0 and len(header) > 2
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False).print(table)


def print_json(content: Any) -> None:
    """Print indented JSON."""
    print(json_format.dumps(content, indent=2))
