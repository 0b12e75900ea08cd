"""Tables on the terminal, or JSON."""

from __future__ import annotations

import json as json_format
import os
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from hpff.cli.narrowing import GAP, SHORTEST, narrowed

_FILE_WIDTH = 200  # Where no terminal says how wide it is, rich would fold at 80.
_CAPTION_WIDTH = 80


def show_list(entries: Sequence[tuple[str, str]], *, json: bool) -> None:
    """Print names and their one-line descriptions."""
    if json:
        print_json([{"name": name, "description": text} for name, text in entries])
    else:
        show_table(("name", "description"), entries)


def show_table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> None:
    """Print a table; all columns but the first are right-aligned if there are more than two.

    Where it is too wide, titles go on several lines, then the first column does. A soft hyphen in
    a title is where a long word may be cut.
    """
    console, rows = _console(), list(rows)
    if len(header) > 2:
        header, rows = narrowed(header, rows, console.width)
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, GAP - 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for index, name in enumerate(header):
        right = index > 0 and len(header) > 2
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print()
    console.print(table)
    console.print()
    if caption:
        console.print(caption, width=min(console.width, _CAPTION_WIDTH), style="table.caption")


def print_json(content: Any) -> None:
    """Print indented JSON."""
    print(json_format.dumps(content, indent=2))


def print_folded(text: str, indent: str = "") -> None:
    """Print a line, on a terminal folded at its width with later lines indented."""
    width = max(_console().width, 2 * SHORTEST)
    folded = textwrap.wrap(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    print("\n".join(folded))


def _console() -> Console:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _FILE_WIDTH
    return console
