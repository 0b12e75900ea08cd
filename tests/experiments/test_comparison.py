from __future__ import annotations

import statistics
from typing import Any

import pytest

from hpff.errors import UserError
from hpff.experiments import comparison_report as results
from hpff.experiments.comparison import Row, default_labels, recipe_for
from hpff.recipes.recipe import Recipe


def levels(recipe: Recipe) -> tuple[str, bool, int, int]:
    local = recipe.local
    return local.method_name, local.independent, local.cascade, local.patches


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("dgl", ("dgl", True, 1, 1)),
        ("dgl+cl", ("dgl", False, 3, 1)),
        ("dgl+hilo", ("dgl", True, 3, 1)),
        ("dgl+pff", ("dgl", True, 1, 4)),
        ("dgl+cl+pff", ("dgl", False, 3, 4)),
        ("dgl+hpff", ("dgl", True, 3, 4)),
        ("dgl+hpff2", ("dgl", True, 3, 2)),
        ("dgl+pff1", ("dgl", True, 1, 1)),
    ],
)
def test_a_label_switches_levels_and_patches(
    make_recipe: Any, label: str, expected: tuple[str, bool, int, int]
) -> None:
    assert levels(recipe_for(label, make_recipe(cascade=3, patches=4), seed=7)) == expected
    assert recipe_for(label, make_recipe(), seed=7).seed == 7


def test_a_recipe_without_cascade_or_patches_gets_two(make_recipe: Any) -> None:
    recipe = recipe_for("dgl+hpff", make_recipe(cascade=1, patches=1), seed=0)
    assert levels(recipe) == ("dgl", True, 2, 2)


def test_only_the_method_and_the_levels_change(make_recipe: Any) -> None:
    recipe = make_recipe(epochs=5, precision="bf16")
    assert recipe_for("dgl+hpff", recipe, recipe.seed) == recipe
    backprop = recipe_for("bp", recipe, recipe.seed)
    assert backprop.to_plain() == {**recipe.to_plain(), "method": "bp"}


def test_settings_stay_with_their_method(make_recipe: Any) -> None:
    recipe = make_recipe(method={"name": "dgl", "hidden_layers": 1})
    assert recipe_for("dgl+cl", recipe, 0).local.method == recipe.local.method
    backprop = make_recipe(method="bp")
    assert recipe_for("dgl", backprop, 0).local.method_settings == {}


def test_a_level_alone_has_its_full_weight(make_recipe: Any) -> None:
    recipe = make_recipe(independent_weight=0.1, cascade_weight=0.9)
    both, alone = recipe_for("dgl+hilo", recipe, 0), recipe_for("dgl", recipe, 0)
    assert (both.local.independent_weight, both.local.cascade_weight) == (0.1, 0.9)
    assert (alone.local.independent_weight, alone.local.cascade_weight) == (None, None)


@pytest.mark.parametrize("label", ["", "+cl", "dgl+", "dgl+pff+cl", "bp+cl", "dgl+hp", "DGL"])
def test_an_unknown_label_is_refused(make_recipe: Any, label: str) -> None:
    with pytest.raises(UserError):
        recipe_for(label, make_recipe(), 0)


def test_default_labels(make_recipe: Any) -> None:
    expected = ["bp", "dgl", "dgl+hpff"]
    assert default_labels(make_recipe()) == default_labels(make_recipe(method="bp")) == expected


def row(label: str, errors: tuple[float, ...], peak: int, step: float) -> Row:
    return Row(label, errors, peak, "counted", step)


def test_rows_show_mean_spread_and_ratios(make_recipe: Any) -> None:
    rows = [row("bp", (3.0, 5.0), 4 * 2**20, 0.01), row("dgl", (6.0, 6.5), 2**20, 0.015)]
    spread = statistics.stdev((3.0, 5.0))
    assert results.cells(rows) == [
        ("bp", f"4.00 ± {spread:.2f}", "4.0 MiB", "1.00", "10.0 ms", "1.00"),
        ("dgl", "6.25 ± 0.35", "1.0 MiB", "0.25", "15.0 ms", "1.50"),
    ]
    assert "mean ± standard deviation over 2 seeds" in results.caption(make_recipe(), rows)


def test_rows_of_fewer_seeds_are_named(make_recipe: Any) -> None:
    rows = [row("bp", (3.0, 5.0), 2**20, 0.01), row("dgl", (6.0,), 2**20, 0.015)]
    caption, fewer, failed = results.notes(make_recipe(), (0, 1), rows, ["dgl seed 1: no"])
    assert "over 2 seeds" in caption
    assert (fewer, failed) == ("Of fewer seeds: dgl (1).", "Failed: dgl seed 1: no")


def test_without_backprop_there_is_nothing_to_divide_by() -> None:
    (cells,) = results.cells([row("dgl", (6.0,), 2**20, 0.015)])
    assert cells == ("dgl", "6.00", "1.0 MiB", "–", "15.0 ms", "–")
