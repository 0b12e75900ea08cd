"""`hpff reproduce`."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpff.analysis.report.run_report import ResultTable, results_page
from hpff.cli.compare import split, split_seeds
from hpff.cli.progress import progress
from hpff.cli.reports import finished, write_or_warn
from hpff.cli.tables import print_json, show_table
from hpff.data import PUBLISHED_DATASETS
from hpff.errors import UserError
from hpff.experiments import paper_tables
from hpff.experiments import reproduction_report as reproduction_results
from hpff.experiments.paper_tables import PaperTable
from hpff.experiments.reproduction import Reproduction, Result, Scale
from hpff.runs.observer import Observer
from hpff.runs.run_paths import scaled_path


def reproduce(
    name: str,
    overrides: Sequence[str],
    *,
    rows: str | None,
    seeds: str | None,
    epochs: int | None,
    subset: int | None,
    data: Sequence[str],
    out: Path | None,
    dry_run: bool,
    wandb: str | None,
    json: bool,
) -> None:
    """Train what is missing, write the table, and show it beside the paper's numbers."""
    table = paper_tables.load(name)
    scale = Scale(epochs, subset, _data(data), tuple(overrides))
    chosen = table.rows if rows is None else table.select(split(rows, "--rows"))
    path = out or scaled_path("reproduce", epochs, subset, data, overrides)
    for folder in (path, path / "tables"):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--out: {folder} is a file, expected a folder or a new name")
    known_seeds = None if seeds is None else split_seeds(seeds)
    work = Reproduction(table, chosen, path, scale, known_seeds)
    options = {"--rows": rows, "--seeds": seeds, "--epochs": epochs, "--subset": subset}
    command = _command(name, overrides, {**options, "--out": out}, data)
    if not dry_run:
        _train(work, path, command, wandb)
    results = work.results(known_only=dry_run)
    faults = list(work.faults)
    finished = any(result.has_values for result in results)
    if finished and not dry_run:
        reproduction_results.write(path / "tables", table, results, command, faults, picture=True)
        _report(path / "tables", table, results, command, faults)
    if json:
        print_json(reproduction_results.as_json(table, results, command, faults))
    elif finished or not faults:
        _show(table, results, faults)
        print(_where(work, path))
    if faults:
        raise UserError(*faults)


def _train(work: Reproduction, path: Path, command: str, wandb: str | None) -> None:
    """Train, and write the table after each run, so that what is there is seen at any time."""
    with contextlib.ExitStack() as stack:

        def observe(label: str, seed: int) -> Observer:
            stack.close()
            return stack.enter_context(progress(f"{label} seed {seed}", wandb))

        def finished() -> None:
            results = work.results(known_only=True)
            reproduction_results.write(path / "tables", work.table, results, command, picture=False)

        work.train(observe, finished)


def _report(
    folder: Path,
    table: PaperTable,
    results: Sequence[Result],
    command: str,
    faults: Sequence[str],
) -> None:
    """Write the table and the curves of its runs as a page, TABLE.html."""
    said = ResultTable(
        reproduction_results.header(table),
        reproduction_results.cells(table, results),
        reproduction_results.notes(table, results, faults),
        "Ours beside the paper's numbers, where it has them.",
    )
    places = [
        (f"{result.row.name.rpartition('/')[2]}, seed {run.recipe.seed}", run.path)
        for result in results
        for run in result.runs
    ]
    write_or_warn(
        folder,
        lambda: results_page(table.title, command, said, list(finished(places))),
        f"{table.name}.html",
    )


def _show(table: PaperTable, results: Sequence[Result], faults: Sequence[str]) -> None:
    show_table(
        reproduction_results.header(table),
        reproduction_results.cells(table, results),
        "\n".join(reproduction_results.notes(table, results, faults)),
    )


def _where(work: Reproduction, path: Path) -> str:
    missing = len(work.missing())
    if missing:
        return f"{path}: {missing} {'run' if missing == 1 else 'runs'} to train"
    if not (path / "tables" / f"{work.table.name}.md").exists():
        return f"{path}: nothing measured yet; without --dry-run it is"
    return f"{path}: every run; {path / 'tables' / work.table.name}.md, .json, .html and .png"


def _command(
    name: str, overrides: Sequence[str], options: Mapping[str, object], data: Sequence[str]
) -> str:
    """The command that makes this table."""
    words = ["hpff", "reproduce", name]
    for option, value in options.items():
        words += [option, str(value)] if value is not None else []
    for text in data:
        words += ["--data", text]
    return shlex.join([*words, *overrides])


def _data(texts: Sequence[str]) -> dict[str, str]:
    """`DATA` for every run, or `NAME=DATA` for those that are published on NAME."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, other = text.partition("=")
        known = bool(equals) and name in PUBLISHED_DATASETS
        key, value = (name, other) if known else ("", text)
        if not value or key in found:
            raise UserError(
                f"--data: is {text!r}, expected DATA once, or NAME=DATA once for each NAME of "
                f"{', '.join(PUBLISHED_DATASETS)}"
            )
        found[key] = value
    return found
