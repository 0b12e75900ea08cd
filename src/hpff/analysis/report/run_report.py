"""The report that training, comparisons and reproductions leave: cheap, and never in their way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpff.analysis.report import page, runs
from hpff.analysis.report.page import Html
from hpff.analysis.report.runs import RunFacts
from hpff.errors import one_line
from hpff.runs.atomic_files import write_atomically

NAME = "report.html"


@dataclass(frozen=True)
class ResultTable:
    """A table of results, as it is shown on the terminal.

    Attributes:
        header: the titles of its columns.
        rows: its cells.
        notes: what is to be said of it.
        said: how to read it.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    said: str = ""


def run_page(run: RunFacts, command: str) -> str:
    """The report of one run."""
    recipe = run.recipe
    what = f"{recipe.model.name} on {recipe.data}"
    title = f"{recipe.local.label()}: {what}"
    parts = [
        page.heading(title, f"seed {recipe.seed}, batch {recipe.batch_size}"),
        runs.numbers(run),
        page.code(command),
        *_details([run]),
    ]
    return page.document(title, parts)


def results_page(title: str, command: str, results: ResultTable, shown: Sequence[RunFacts]) -> str:
    """The report of several runs: their table, then each run's own curves."""
    parts = [
        page.heading(title, f"{len(shown)} finished runs"),
        page.code(command),
        page.section(
            "Results", results.said, [page.table(results.header, results.rows), *_notes(results)]
        ),
        *_details(shown),
    ]
    return page.document(title, parts)


def write_report(folder: Path, make: Callable[[], str], name: str = NAME) -> str | None:
    """Put `report.html` into a folder; whatever goes wrong, only say so.

    Args:
        folder: where it goes.
        make: makes the page.
        name: of the file.

    Returns:
        A warning, or None.
    """
    try:
        write_atomically(folder / name, make().encode())
    except Exception as error:  # noqa: BLE001 - what was trained matters, not its picture
        said = " ".join(str(error).split()) or type(error).__name__
        return one_line(f"{folder / name}: was not written ({said})")
    return None


def _details(shown: Sequence[RunFacts]) -> list[Html]:
    memory = runs.memory(shown)
    return [
        *([runs.training(shown)] if shown else []),
        *([memory] if memory is not None else []),
        *([runs.recipe_and_machine(shown)] if shown else []),
    ]


def _notes(results: ResultTable) -> list[Html]:
    return [page.bullets(results.notes)] if results.notes else []
