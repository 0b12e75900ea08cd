"""Tables on the terminal, or JSON."""

from __future__ import annotations

import json as json_format
import os
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

_FILE_WIDTH = 200  # Where no terminal says how wide it is, rich would fold at 80.
_GAP = 2
_CAPTION_WIDTH = 80
_SOFT, _CUT = "\u00ad", "\u200b"  # Where a title may be cut, and where it is.
_SHORTEST = 12  # of a folded first column


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
        header, rows = _narrowed(header, rows, console.width)
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, _GAP - 1, 0, 0),
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
    width = max(_console().width, 2 * _SHORTEST)
    folded = textwrap.wrap(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    print("\n".join(folded))


def _console() -> Console:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _FILE_WIDTH
    return console


def _narrowed(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> tuple[list[str], list[Sequence[str]]]:
    """Titles and rows that fit, as far as cells let them."""
    columns = list(zip(*rows, strict=True)) or [()] * len(header)
    widest = [max(map(_length, cells), default=0) for cells in columns]
    titles = [title.replace(_SOFT, "") for title in header]

    def excess() -> int:
        wanted = map(max, map(_length, titles), widest)
        return sum(wanted) + _GAP * (len(header) - 1) - width

    for cut in (False, True):
        for index in sorted(range(len(header)), key=lambda i: widest[i] - _length(titles[i])):
            least = max(widest[index], _length(titles[index]) - excess())
            if excess() > 0:
                titles[index] = _stacked(header[index], least, cut=cut)
    over = excess()
    if over <= 0:
        return titles, list(rows)
    first = max(max(widest[0], _length(titles[0])) - over, _SHORTEST)
    return titles, [(_folded(row[0], first), *row[1:]) for row in rows]


def _stacked(title: str, width: int, *, cut: bool) -> str:
    """A title on several lines, as wide as given or as its longest word."""
    title = title.replace(_SOFT, f"-{_CUT}" if cut else "")
    words = re.split(f" |{_CUT}", title)
    width = max(width, *map(len, words))
    lines = [words[0]]
    for word in words[1:]:
        joined = lines[-1][:-1] + word if lines[-1].endswith("-") else f"{lines[-1]} {word}"
        if len(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return "\n".join(lines)


def _folded(text: str, width: int) -> str:
    """A name on several lines, broken behind its signs."""
    lines = [""]
    for part in re.findall(r"[^ +/=,-]*[ +/=,-]?", text):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def _length(text: str) -> int:
    return max(map(len, text.split("\n")), default=0)
