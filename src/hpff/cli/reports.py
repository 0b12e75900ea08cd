"""The report.html that commands leave beside what they made."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from hpff.analysis.report.run_report import NAME, write_report
from hpff.analysis.report.runs import RunFacts
from hpff.errors import UserError


def write_or_warn(folder: Path, make: Callable[[], str], name: str = NAME) -> None:
    """Write a folder's report; where it cannot be, a line on stderr says so."""
    warning = write_report(folder, make, name)
    if warning is not None:
        print(f"hpff: warning: {warning}", file=sys.stderr)


def finished(paths: Iterable[tuple[str, Path]]) -> Iterator[RunFacts]:
    """What can be read of finished runs, by label and folder; others are left out."""
    for label, path in paths:
        try:
            yield RunFacts.read(path, label)
        except (UserError, OSError, ValueError, RecursionError):  # damaged files
            continue
