"""Tables that are too wide: titles go on several lines, then the first column does.

Rich would share the loss out among all columns, and break numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

GAP = 2  # between columns
SHORTEST = 12  # of a folded first column
_SOFT, _CUT = "\u00ad", "\u200b"  # where a title may be cut, and where it is


def narrowed(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> tuple[list[str], list[Sequence[str]]]:
    """Titles and rows that fit, as far as cells let them."""
    columns = list(zip(*rows, strict=True)) or [()] * len(header)
    widest = [max(map(_length, cells), default=0) for cells in columns]
    titles = [title.replace(_SOFT, "") for title in header]

    def excess() -> int:
        wanted = map(max, map(_length, titles), widest)
        return sum(wanted) + GAP * (len(header) - 1) - width

    for cut in (False, True):
        for index in sorted(range(len(header)), key=lambda i: widest[i] - _length(titles[i])):
            least = max(widest[index], _length(titles[index]) - excess())
            if excess() > 0:
                titles[index] = _stacked(header[index], least, cut=cut)
    over = excess()
    if over <= 0:
        return titles, list(rows)
    first = max(max(widest[0], _length(titles[0])) - over, SHORTEST)
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
