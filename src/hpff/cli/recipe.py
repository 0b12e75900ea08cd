"""`hpff recipe show | copy | check`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpff.cli.tables import print_json
from hpff.data import PUBLISHED_DATASETS
from hpff.errors import UserError
from hpff.recipes import files as recipe_files
from hpff.runs.atomic_files import write_atomically
from hpff.training.dry_run import rehearse
from hpff.training.setup import assemble


def show(name: str, overrides: Sequence[str], *, json: bool) -> None:
    """Print the resolved recipe."""
    recipe = recipe_files.load(name, overrides)
    if json:
        print_json(recipe.to_plain())
    else:
        print(recipe_files.dump(recipe), end="")


def copy(name: str, destination: Path, overrides: Sequence[str], *, json: bool) -> None:
    """Write the resolved recipe to a new file."""
    recipe = recipe_files.load(name, overrides)
    if destination.suffix not in (".yaml", ".yml"):
        raise UserError(f"{destination}: expected a file name that ends in .yaml")
    if destination.exists():
        raise UserError(f"{destination}: exists already; choose another name")
    header = f"# From {name}. Run: hpff train {destination}\n"
    write_atomically(destination, (header + recipe_files.dump(recipe)).encode())
    if json:
        print_json({"recipe": str(destination), "from": name})
        return
    print(f"{destination}: written; run it with `hpff train {destination}`")


def check(name: str, overrides: Sequence[str], *, json: bool) -> None:
    """Validate, and build everything; faults arrive as UserError.

    Data sets that may have to be downloaded are stood in for by their sizes.
    """
    recipe = recipe_files.load(name, overrides)
    with_data = recipe.data not in PUBLISHED_DATASETS
    if with_data:
        assemble(recipe)
    else:
        rehearse(recipe, steps=0)
    if json:
        print_json({"recipe": name, "faults": [], "with_data": with_data})
        return
    without = "" if with_data else f" (built without {recipe.data} itself)"
    print(f"{name}: no faults{without}")
