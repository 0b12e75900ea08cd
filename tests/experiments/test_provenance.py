"""What a table says of where its settings come from."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest

from hpff.experiments import provenance
from hpff.experiments.provenance import Setting
from hpff.recipes import files as recipe_files

EVERY = [name for name, _ in recipe_files.names() if name != "demo"]


def settings(name: str, *changes: str) -> dict[str, Setting]:
    return provenance.settings(name, recipe_files.load(name), recipe_files.load(name, changes))


@pytest.mark.parametrize("name", EVERY)
def test_every_setting_of_every_packaged_recipe_has_a_source(name: str) -> None:
    found = settings(name)
    assert [key for key, setting in found.items() if setting.source is None] == []
    assert {"data", "model.name", "epochs", "batch_size", "optimizer.lr"} <= found.keys()


def test_a_key_that_is_new_in_recipes_needs_a_source_or_has_no_effect() -> None:
    recipe = recipe_files.load("cifar10/resnet32-k16-dgl-hpff")
    known = {key.partition(".")[0] for key in settings("cifar10/resnet32-k16-dgl-hpff")}
    silent = provenance._WITHOUT_EFFECT | set(provenance._OFF)
    assert recipe.to_plain().keys() - known == silent


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("cifar10/resnet32-bp", set()),
        ("cifar10/resnet32-k16-infopro", set()),
        (
            "cifar10/resnet32-k16-dgl-hpff",
            {"independent_weight", "cascade_weight", "auxiliary_weight", "smallest_patch"},
        ),
        (
            "cifar10/resnet110-k32-infopro",
            {"method.reconstruction", "method.classification"},
        ),
        ("svhn/resnet32-k8-infopro", {"method.reconstruction", "method.classification"}),
        ("imagenet/vgg13-bp", {"model.name", "model.dropout", "batch_size"}),
        (
            "cifar10/vit_b_16-bp",
            {
                *("model.image_size", "augment", "optimizer.name", "optimizer.lr"),
                *("optimizer.weight_decay", "schedule.name", "schedule.warmup_epochs"),
                "schedule.warmup_lr",
            },
        ),
    ],
)
def test_what_nobody_published_is_ours(name: str, ours: set[str]) -> None:
    assert {key for key, setting in settings(name).items() if setting.ours} == ours


def test_values_are_those_in_force() -> None:
    found = settings("cifar10/resnet32-k16-dgl-hpff")
    assert found["method.hidden_layers"].value == 2
    assert found["cascade_weight"].value == 1.0
    assert "method.mean" not in settings("cifar10/resnet32-k16-infopro")


def test_a_changed_value_is_no_longer_the_published_one() -> None:
    found = settings("cifar10/vit_b_16-bp", "epochs=20", "optimizer.lr=1e-3")
    assert found["epochs"] == Setting(20, None)
    assert found["optimizer.lr"].value == 1e-3
    assert found["optimizer.lr"].ours
    published, *_ = provenance.lines({"a": found})
    assert "epochs" not in published
    assert "batch_size" in published


def test_a_file_of_ones_own_has_no_sources() -> None:
    recipe = recipe_files.load("cifar10/resnet32-bp")
    found = provenance.settings("cifar10/resnet32-bp.yaml", recipe, recipe)
    assert {setting.source for setting in found.values()} == {None}
    assert provenance.lines({"a": found}) == []


def test_lines_name_the_runs_where_they_differ() -> None:
    runs = {
        "a": {"x": Setting(1, "ours: a guess"), "y": Setting(2, "ours: a guess")},
        "b": {"x": Setting(3, "ours: a guess"), "y": Setting(2, "a paper")},
        "c": {"z": Setting(4, "a paper")},
    }
    published, ours, where = provenance.lines(runs)
    assert published == "Published: y, z (a paper)."
    assert ours == "Ours: x, y 2 (a guess; in a, b)."
    assert "docs/methods.md" in where


def test_every_block_of_sources_is_for_some_recipe() -> None:
    """And every key in it for a setting of one of them."""
    for pattern, block in provenance._blocks().items():
        names = [name for name in EVERY if fnmatchcase(name, pattern)]
        keys = {key for name in names for key in settings(name)}
        for named in block.values():
            for key in named:
                assert any(k == key or k.startswith(f"{key}.") for k in keys), (pattern, key)
