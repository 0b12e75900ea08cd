from __future__ import annotations

import dataclasses

import pytest

from hpff.experiments.comparison import recipe_for
from hpff.experiments.paper_errors import paper_error
from hpff.recipes import files


@pytest.mark.parametrize(
    ("label", "error"),
    [("bp", 6.37), ("dgl", 14.08), ("dgl+hilo", 9.44), ("dgl+hpff", 8.94), ("dgl+pff", None)],
)
def test_runs_find_their_number_in_the_paper(label: str, error: float | None) -> None:
    recipe = files.load("cifar10/resnet32-k16-dgl-hpff", ["epochs=20", "subset=5000"])
    assert paper_error(recipe_for(label, recipe, seed=1)) == error
    elsewhere = dataclasses.replace(recipe_for(label, recipe, 0), data="parquet:some/cifar10")
    assert paper_error(elsewhere) == error


def test_other_runs_have_none() -> None:
    recipe = files.load("cifar10/resnet32-k16-dgl", ["modules=5"])
    assert paper_error(recipe) is None
    assert paper_error(files.load("demo")) is None
    assert paper_error(files.load("cifar10/resnet32-k16-dgl", ["model.width=8"])) is None
