"""The paper's error of a run like one of ours, where it has one."""

from __future__ import annotations

import functools

from hpff.experiments import paper_tables
from hpff.recipes import files as recipe_files
from hpff.recipes.recipe import Recipe


def paper_error(recipe: Recipe) -> float | None:
    """The test error in percent that the paper prints for a run of this kind.

    That is the same network, data set (one given by a path counts by its folder's name), method,
    levels, patches and K, whatever the epochs and the rest.
    """
    data = recipe.data.rstrip("/").rpartition("/")[2].rpartition(":")[2]
    for published, error in _published(f"{data}/{recipe.model.name}-"):
        if _alike(published, recipe):
            return error
    return None


@functools.cache
def _published(start: str) -> tuple[tuple[Recipe, float], ...]:
    """The runs that the paper prints an error of, whose recipes' names start so."""
    rows = [row for name, _ in paper_tables.names() for row in paper_tables.load(name).rows]
    known = {row.recipe: row.paper["error"] for row in rows if "error" in row.paper}
    return tuple(
        (recipe_files.load(name), error) for name, error in known.items() if name.startswith(start)
    )


def _alike(published: Recipe, ours: Recipe) -> bool:
    if published.model != ours.model or published.local.label() != ours.local.label():
        return False
    return ours.local.is_backprop or published.local.module_count == ours.local.module_count
