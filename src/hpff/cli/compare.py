"""`hpff compare`."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence
from pathlib import Path

from hpff.analysis.report.run_report import ResultTable, results_page
from hpff.cli.leaving import resumable
from hpff.cli.progress import progress
from hpff.cli.reports import finished, write_or_warn
from hpff.cli.tables import print_json, show_table
from hpff.errors import UserError, shown
from hpff.experiments import comparison
from hpff.experiments import comparison_report as results
from hpff.experiments.comparison import Row
from hpff.experiments.paper_errors import paper_error
from hpff.recipes import files as recipe_files
from hpff.recipes.recipe import Recipe
from hpff.runs.observer import Observer
from hpff.runs.run_paths import default_path


def compare(
    name: str,
    overrides: Sequence[str],
    methods: str | None,
    seeds_text: str | None,
    out: Path | None,
    *,
    resume: bool,
    wandb: str | None,
    json: bool,
) -> None:
    """Train what is missing, write results.md and results.json, and show the table."""
    recipe = recipe_files.load(name, overrides)
    labels = comparison.default_labels(recipe) if methods is None else split(methods, "--methods")
    seeds = [recipe.seed] if seeds_text is None else split_seeds(seeds_text)
    path = out or default_path(f"compare-{Path(name).stem}", resume=resume)
    with resumable(path, lambda: _has_begun(path)), contextlib.ExitStack() as stack:

        def observe(label: str, seed: int) -> Observer:
            stack.close()
            return stack.enter_context(progress(f"{label} seed {seed}", wandb))

        rows, faults = comparison.run(recipe, labels, seeds, path, resume=resume, observe=observe)
    if rows:
        results.write(path, name, recipe, seeds, rows, faults)
        places = [
            (f"{label}, seed {seed}", path / label / f"seed-{seed}")
            for label in labels
            for seed in seeds
        ]
        command = _command(name, overrides, labels, seeds, path)
        notes = results.notes(recipe, seeds, rows, faults)
        write_or_warn(path, lambda: _page(command, recipe, rows, notes, places))
        _show(path, name, recipe, seeds, rows, faults, json=json)
    if faults:
        raise UserError(*faults)


def _has_begun(path: Path) -> bool:
    return path.is_dir() and any(path.iterdir())


def _show(
    path: Path,
    name: str,
    recipe: Recipe,
    seeds: Sequence[int],
    rows: Sequence[Row],
    faults: Sequence[str],
    *,
    json: bool,
) -> None:
    if json:
        print_json(results.as_json(name, recipe, seeds, rows, faults))
        return
    caption = "\n".join(results.notes(recipe, seeds, rows, faults))
    show_table(results.header(rows), results.cells(rows), caption)
    print(f"{path}: {'what finished' if faults else 'every run'}, results.md and results.json")


def _page(
    command: str,
    recipe: Recipe,
    rows: Sequence[Row],
    notes: Sequence[str],
    places: Sequence[tuple[str, Path]],
) -> str:
    """The comparison's report, with the curves of its runs."""
    title = f"{recipe.model.name} on {recipe.data}"
    return results_page(title, command, _beside_paper(recipe, rows, notes), list(finished(places)))


def _beside_paper(recipe: Recipe, rows: Sequence[Row], notes: Sequence[str]) -> ResultTable:
    """The table, with the paper's errors where it has runs of this kind."""
    cells = results.cells(rows)
    found = [paper_error(comparison.recipe_for(row.label, recipe, recipe.seed)) for row in rows]
    header = results.header(rows)
    if not any(found):
        return ResultTable(header, cells, notes)
    paper = ["–" if error is None else f"{error:.2f}" for error in found]
    first, error, *others = header
    header = (first, error, "in the paper", *others)
    beside = [(row[0], row[1], text, *row[2:]) for row, text in zip(cells, paper, strict=True)]
    said = "The paper's errors are of its own number of epochs, and the best over test epochs."
    return ResultTable(header, beside, notes, said)


def _command(
    name: str, overrides: Sequence[str], labels: Sequence[str], seeds: Sequence[int], path: Path
) -> str:
    """The command that makes this comparison."""
    told = ["--methods", ",".join(labels), "--seeds", ",".join(map(str, seeds))]
    return shlex.join(["hpff", "compare", name, *overrides, *told, "--out", str(path)])


def split(text: str, option: str) -> list[str]:
    """The words of an option such as `a,b,c`."""
    words = [word.strip() for word in text.split(",")]
    if not all(words) or len(set(words)) < len(words):
        raise UserError(f"{option}: is {text!r}, expected different words with commas between")
    return words


def split_seeds(text: str) -> list[int]:
    """The numbers of `--seeds`."""
    words = split(text, "--seeds")
    if not all(word.isdecimal() and len(word) <= 30 for word in words):
        raise UserError(f"--seeds: is {shown(text)}, expected whole numbers such as 0,1,2")
    seeds = [int(word) for word in words]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds: is {shown(text)}, expected each seed once")
    return seeds
