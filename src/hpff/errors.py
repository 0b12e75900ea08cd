"""The one error that a user can cause and mend, and the words that such messages share."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# What ends a line, moves a terminal's cursor or turns the text around it; half a character pair.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(ValueError):
    """Bad input: one line a fault that says what is wrong, what was expected and what to do.

    Args:
        *lines: the faults. What they quote from recipes and files cannot break their lines.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*map(one_line, lines))

    def __str__(self) -> str:
        return "\n".join(self.args)


class AgreedError(UserError):
    """Bad input that every process of a run raises alike, so that one of them need say it."""


def one_line(text: str) -> str:
    """The text with line ends, escape codes and the like written out as Python writes them."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`, did you mean X?` for the known word closest to `word`, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean {close[0]}?" if close else ""


def shown(value: object) -> str:
    """A value as a message shows it: short, on one line, as YAML has it."""
    text = _written(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _written(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    try:
        return repr(value)
    except ValueError:  # Python writes no whole number of more than 4300 digits.
        return "a value of thousands of digits"
