"""The metrics of a run as one table, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any


def as_csv(history: Sequence[Mapping[str, Any]]) -> str:
    """One line an epoch; a list is spread over columns `NAME.1`, `NAME.2`, ...; None is empty."""
    rows = [flat(entry) for entry in history]
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry with lists spread over keys `NAME.1`, `NAME.2`, ..."""
    values: dict[str, Any] = {}
    for name, value in entry.items():
        if isinstance(value, list):
            values |= {f"{name}.{index}": item for index, item in enumerate(value, 1)}
        else:
            values[name] = value
    return values
