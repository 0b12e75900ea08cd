"""Tables of the paper: which runs their rows are, and the numbers printed in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hpff.errors import UserError, did_you_mean, shown
from hpff.experiments.columns import COLUMNS
from hpff.recipes import files as recipe_files
from hpff.recipes.yaml_text import parse_yaml

_KEYS = ("title", "source", "measures", "rows")


@dataclass(frozen=True)
class PaperRow:
    """A run by its recipe, and the paper's numbers of it: a measure's name to its number.

    `name` is what the row is called, and its folder; `recipe` is what `recipe_files.load` takes.
    """

    name: str
    recipe: str
    paper: Mapping[str, float]


@dataclass(frozen=True)
class PaperTable:
    """A table: what it shows, where its numbers come from, the measures it has, and its rows."""

    name: str
    title: str
    source: str
    measures: tuple[str, ...]
    rows: tuple[PaperRow, ...]

    def select(self, patterns: list[str]) -> tuple[PaperRow, ...]:
        """The rows whose names, or the last parts of them, fit a pattern such as `*-k16-dgl*`.

        Raises:
            UserError: a pattern fits none.
        """
        for pattern in patterns:
            if not any(_fits(row, pattern) for row in self.rows):
                names = [row.name.rpartition("/")[2] for row in self.rows]
                raise UserError(
                    f"--rows: {shown(pattern)} is no row of {self.name}, expected one of "
                    f"{', '.join(names)}{did_you_mean(pattern, names)}"
                )
        return tuple(row for row in self.rows if any(_fits(row, p) for p in patterns))


def names() -> list[tuple[str, str]]:
    """The packaged tables: name and the first line of the header comment."""
    files = sorted(recipe_files.TABLES.glob("*.yaml"))
    return [(file.stem, recipe_files.header(file)) for file in files]


def load(name: str) -> PaperTable:
    """The packaged table of that name, or one of your own from a .yaml file.

    Recipes that are files are found from the table's folder.

    Raises:
        UserError: there is no such table, or it has faults.
    """
    own = name.endswith((".yaml", ".yml"))
    path = Path(name) if own else recipe_files.TABLES / f"{name}.yaml"
    if not own and name not in [known for known, _ in names()]:
        hint = did_you_mean(name, [known for known, _ in names()])
        raise UserError(
            f"{name or repr(name)}: unknown table, expected a name from `hpff list tables` or a "
            f".yaml file{hint}"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{path}: cannot read this table ({reason})") from error
    return _parse(parse_yaml(text, name), name, path)


def _parse(plain: Any, name: str, path: Path) -> PaperTable:
    if not isinstance(plain, dict) or set(plain) != set(_KEYS):
        raise UserError(f"{name}: is not a table, expected the keys {', '.join(_KEYS)}")
    for key in ("title", "source"):
        if not isinstance(plain[key], str):
            raise UserError(f"{name}: {key}: is {shown(plain[key])}, expected text")
    measures = plain["measures"]
    if not isinstance(measures, list) or not measures or any(m not in COLUMNS for m in measures):
        raise UserError(
            f"{name}: measures: is {shown(measures)}, expected a list of {', '.join(COLUMNS)}"
        )
    rows = plain["rows"]
    if not isinstance(rows, dict) or not rows:
        raise UserError(f"{name}: rows: is {shown(rows)}, expected recipes and their numbers")
    found = [_row(name, path, recipe, rows[recipe], measures) for recipe in rows]
    return PaperTable(
        name=path.stem,
        title=plain["title"],
        source=plain["source"],
        measures=tuple(measures),
        rows=_with_folders_of_their_own(name, list(rows), found),
    )


def _row(table: str, path: Path, recipe: Any, paper: Any, measures: list[str]) -> PaperRow:
    numbers = isinstance(paper, dict) and all(
        key in measures and isinstance(value, int | float) and not isinstance(value, bool)
        for key, value in paper.items()
    )
    if not isinstance(recipe, str) or not numbers:
        raise UserError(
            f"{table}: rows: {shown(recipe)}: is {shown(paper)}, expected a recipe and numbers of "
            f"{', '.join(measures)} ({{}} where the paper has none)"
        )
    if recipe.endswith((".yaml", ".yml")):
        return PaperRow(Path(recipe).stem, str(path.parent / recipe), paper)
    return PaperRow(recipe, recipe, paper)


def _with_folders_of_their_own(
    table: str, recipes: list[str], rows: list[PaperRow]
) -> tuple[PaperRow, ...]:
    """Rows by different names: files of one name, in several folders, go by their whole paths."""
    names = Counter(row.name for row in rows)
    named = [
        row if names[row.name] == 1 else replace(row, name=_path_name(recipe))
        for recipe, row in zip(recipes, rows, strict=True)
    ]
    names = Counter(row.name for row in named)
    for recipe, row in zip(recipes, named, strict=True):
        if names[row.name] > 1:
            raise UserError(
                f"{table}: rows: {recipe}: another row is called {row.name}, too, expected files "
                "of different names"
            )
    return tuple(named)


def _path_name(recipe: str) -> str:
    parts = Path(recipe).with_suffix("").parts
    return "/".join(part for part in parts if part not in ("..", "/"))


def _fits(row: PaperRow, pattern: str) -> bool:
    return fnmatchcase(row.name, pattern) or fnmatchcase(row.name.rpartition("/")[2], pattern)
