"""The one error that a user can cause and mend, and the words that such messages share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: one line that says what is wrong, what was expected and what to do."""


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
