"""Tables on the terminal, or JSON."""

from __future__ import annotations

import json as json_format
import os
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

_FILE_WIDTH = 200  # Where no terminal says how wide it is, rich would fold at 80.


def show_list(entries: Sequence[tuple[str, str]], *, json: bool) -> None:
    """Print names and their one-line descriptions."""
    if json:
        print_json([{"name": name, "description": text} for name, text in entries])
    else:
        show_table(("name", "description"), entries)


def show_table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> None:
    """Print a table; all columns but the first are right-aligned if there are more than two."""
    table = Table(box=box.SIMPLE_HEAD, caption=caption or None, caption_justify="left")
    for index, name in enumerate(header):
        right = index > 0 and len(header) > 2
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _FILE_WIDTH
    console.print(table)


def print_json(content: Any) -> None:
    """Print indented JSON."""
    print(json_format.dumps(content, indent=2))
