from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from hpff.errors import UserError
from hpff.recipes import files as recipe_files
from hpff.recipes import recipe as recipes
from hpff.recipes.recipe import Recipe
from hpff.schema import Component
from hpff.settings import LocalSettings
from hpff.training import setup as parts

SMALL = {
    "model": "resnet20",
    "data": "digits",
    "method": "dgl",
    "modules": 3,
    "cascade": 2,
    "epochs": 3,
    "batch_size": 64,
    "optimizer": {"lr": 0.1},
}


def faults(changes: Mapping[object, object]) -> list[str]:
    with pytest.raises(UserError) as caught:
        recipes.parse({**SMALL, **changes}, "mine")
    return str(caught.value).splitlines()


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cascade": 4}, "cascade: is 4, expected at most the number of modules (3)"),
        ({"modules": ["a"], "cascade": 3}, "cascade: is 3, expected at most the number of modules"),
        ({"patches": 0}, "patches: is 0, expected a whole number of at least 1"),
        ({"cascade": 0}, "cascade: is 0, expected a whole number of at least 1"),
        ({"epochs": 0}, "epochs: is 0, expected a whole number of at least 1"),
        ({"epochs": 1.5}, "epochs: is 1.5, expected a whole number of at least 1"),
        ({"batch_size": 1}, "batch_size: is 1, expected at least 2"),
        ({"independent": False, "cascade": 1}, "independent: is false with cascade 1"),
        ({"independent": "yes"}, "independent: is 'yes', expected true or false"),
        ({"optimizer": {"lr": "fast"}}, "optimizer.lr: is 'fast', expected a number above 0"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr: is nan, expected a number above 0"),
        ({"optimizer": {"lr": True}}, "optimizer.lr: is true, expected a number above 0"),
        ({"optimizer": {}}, "optimizer.lr: is missing, expected a number above 0"),
        ({"optimizer": 3}, "optimizer: is 3, expected keys and values"),
        ({"optimizer": {"lr": 1, "momentum": 0}}, "optimizer.nesterov: is true with momentum 0"),
        ({"optimizer": {"lr": 1, "moment": 0}}, "unknown key, did you mean momentum?"),
        ({"schedule": {"warmup_epochs": 4}}, "schedule.warmup_epochs: is 4, expected at most"),
        (
            {"schedule": {"warmup_epochs": 1, "warmup_lr": 0.2}},
            "schedule.warmup_lr: is 0.2, expected at most the rate that it warms up to",
        ),
        (
            {"schedule": {"name": "cosin"}},
            "expected cosine or cosine-from-full or constant or poly, did",
        ),
        ({"precision": "fp16"}, "precision: is 'fp16', expected fp32 or bf16"),
        (
            {"compile": True, "recompute": "blocks"},
            "compile: is true with recompute blocks, which sees no operation inside compiled",
        ),
        ({"modules": None}, "modules: is missing, expected the number of local modules"),
        ({"modules": []}, "modules: is [], expected a whole number of at least 1 or a list"),
        ({"subset": 10}, "subset: is 10, expected at least batch_size (64)"),
        ({"method": {"hidden_layers": 2}}, "method: is {'hidden_layers': 2}, expected a name"),
        ({"method": "dlg"}, "method: unknown method 'dlg'"),
        ({"method": {"name": "dgl", "hiden": 2}}, "method: method 'dgl' has no setting 'hiden'"),
        ({"cascade": "far"}, "cascade: is 'far', expected a whole number of at least 1 or auto or"),
        ({"cascade": [1, 2]}, "cascade: has 2 lengths, expected one for each module (3)"),
        ({"cascade": [1, 0, 2]}, "cascade: is [1, 0, 2], expected"),
        ({"cascade_budget": 0.5}, "cascade_budget: is 0.5, expected a number of at least 1"),
        ({"balance": "memry"}, "balance: is 'memry', expected blocks or parameters or memory"),
        ({"model": "resnt20"}, "model: unknown model 'resnt20'"),
        ({"data": "digts"}, "data: is digts, expected a name from `hpff list datasets`"),
        ({"epoch": 3}, "epoch: unknown key, did you mean epochs?"),
        ({7: 3}, "7: unknown key, expected one of model, data, method"),
    ],
)
def test_one_fault_is_one_line(changes: dict[object, object], message: str) -> None:
    (line,) = faults(changes)
    assert line.startswith("mine: ")
    assert message in line


def test_every_fault_is_reported_at_once() -> None:
    lines = faults(
        {"epochs": 0, "optimizer": {"lr": -1}, "patchs": 2, "method": "dlg", "cascade": 9}
    )
    keys = [line.split(": ")[1] for line in lines]
    assert sorted(keys) == ["cascade", "epochs", "method", "optimizer.lr", "patchs"]


def test_a_start_above_the_rate_is_no_fault_without_warm_up() -> None:
    recipe = recipes.parse({**SMALL, "optimizer": {"lr": 1e-4}}, "mine")
    assert recipe.schedule.warmup_lr > recipe.optimizer.lr


def test_backprop_needs_no_modules() -> None:
    recipe = recipes.parse({**SMALL, "method": "bp", "modules": None, "cascade": 9}, "mine")
    assert recipe.local.is_backprop


def test_a_dumped_recipe_reads_back_equal(tmp_path: Path) -> None:
    for name, _ in recipe_files.names():
        recipe = recipe_files.load(name)
        if recipe.local.method_name == "dgl":
            recipe = recipe_files.load(name, ["method.hidden_layers=1"])
        path = write(tmp_path, "recipe.yaml", recipe_files.dump(recipe))
        assert recipe_files.load(path) == recipe


def test_a_length_for_each_cascade_and_a_balance_reach_the_learner(tmp_path: Path) -> None:
    chosen = ["cascade=[1, 1, 3]", "balance=memory", "independent=false"]
    path = write(tmp_path, "small.yaml", recipe_files.dump(recipes.parse(SMALL, "small")))
    recipe = recipe_files.load(path, chosen)
    assert recipe_files.load(write(tmp_path, "b.yaml", recipe_files.dump(recipe))) == recipe
    assert parts.assemble(recipe).learner.reach.lengths == (1, 1, 3)
    auto = parts.assemble(recipe_files.load(path, ["cascade=auto", "cascade_budget=9"])).learner
    assert auto.reach.lengths == (1, 2, 3)


def test_numbers_that_yaml_takes_for_text(tmp_path: Path) -> None:
    text = recipe_files.dump(recipes.parse(SMALL, "small"))
    path = write(tmp_path, "a.yaml", text.replace("weight_decay: 0.0001", "weight_decay: 5e-4"))
    recipe = recipe_files.load(path, ["optimizer.lr=1e-1", "batch_size=1e2"])
    assert recipe.optimizer.weight_decay == 5e-4
    assert recipe.optimizer.lr == 0.1
    assert recipe.batch_size == 100


def test_a_recipe_lies_over_its_base_key_by_key(tmp_path: Path) -> None:
    text = recipe_files.dump(recipes.parse(SMALL, "small"))
    write(
        tmp_path, "base.yaml", text.replace("method: dgl", "method: {name: dgl, hidden_layers: 1}")
    )
    path = write(
        tmp_path, "deep/own.yaml", "base: ../base.yaml\noptimizer: {lr: 0.7}\nmethod: dgl\n"
    )
    recipe = recipe_files.load(path, ["seed=5", "modules=[layer1.0, layer2.0]"])
    assert (recipe.optimizer.lr, recipe.optimizer.momentum) == (0.7, 0.9)
    assert recipe.local.method_settings == {}
    assert (recipe.seed, recipe.local.modules) == (5, ("layer1.0", "layer2.0"))


def test_a_file_can_build_on_a_packaged_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.yaml", "base: demo\nepochs: 2\n")
    assert recipe_files.load(path) == dataclasses.replace(recipe_files.load("demo"), epochs=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: [1", "broken YAML at line 1"),
        ("a: b: c", "broken YAML at line 1, column 5"),
        ("epochs: 1\nepochs: 2\n", "line 2, column 1: key 'epochs' is given twice"),
        ("- 1", "is not a recipe"),
        ("", "is not a recipe"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("base: mine.yaml", "base goes round in a circle"),
        ("base: nothing", "unknown recipe"),
        ("base: 3", "base: is 3, expected a recipe's name or file"),
        ("base: gone.yaml", "cannot read this recipe (No such file or directory)"),
    ],
)
def test_a_broken_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "mine.yaml", text)
    with pytest.raises(UserError) as caught:
        recipe_files.load("mine.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["epochs", "=3", "a..b=1", "epochs.x=1", "epochs=[1"])
def test_a_bad_override_is_named(override: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(override)}: "):
        recipe_files.load("demo", [override])


@pytest.mark.parametrize("name", ["../recipes/demo", "/etc/passwd", "cifar10", "cifar10/_bas"])
def test_only_packaged_names_are_names(name: str) -> None:
    with pytest.raises(UserError, match="unknown recipe"):
        recipe_files.load(name)


def test_differences_name_the_keys() -> None:
    recipe = recipes.parse(SMALL, "small")
    other = recipes.parse({**SMALL, "optimizer": {"lr": 0.2}, "seed": 1}, "small")
    assert recipes.differences(recipe, recipe) == []
    assert recipes.differences(recipe, other) == ["optimizer.lr (0.1, now 0.2)", "seed (0, now 1)"]


def test_a_run_goes_on_with_a_graph_or_without() -> None:
    recipe = recipes.parse(SMALL, "small")
    assert recipes.differences(recipe, dataclasses.replace(recipe, cuda_graph=True)) == []
    local = dataclasses.replace(recipe.local, streams=3)
    assert recipes.differences(recipe, dataclasses.replace(recipe, local=local)) == []


@pytest.mark.parametrize("parallel", ["data", "modules"])
def test_several_streams_are_for_one_process(parallel: str) -> None:
    several = {"parallel": parallel, "ranks": 2, "streams": 2, "step_per_module": True}
    with pytest.raises(UserError, match=f"streams: is 2 with parallel {parallel}, expected 1"):
        recipes.parse({**SMALL, **several}, "small")


def test_headers_give_the_command() -> None:
    root = Path(recipe_files.__file__).parent
    for name, description in recipe_files.names():
        text = (root / f"{name}.yaml").read_text()
        assert description.endswith(".")
        assert f"hpff train {name}\n" in text or f"hpff compare {name} " in text
        assert not [line for line in text.splitlines() if len(line) > 100]


def test_recipe_is_complete_in_plain_form() -> None:
    plain = recipes.parse(SMALL, "small").to_plain()
    fields = [*dataclasses.fields(Recipe), *dataclasses.fields(LocalSettings)]
    assert plain.keys() == {field.name for field in fields} - {"local"}


def test_published_settings_are_in_force_where_the_recipe_gives_none(tmp_path: Path) -> None:
    name = "cifar10/resnet110-k55-infopro-hpff"
    recipe = recipe_files.load(name)
    weights = {"reconstruction": [5, 0.5], "classification": [0, 1]}
    assert recipe.local.method_settings == weights
    assert yaml.safe_load(recipe_files.dump(recipe))["method"] == {"name": "infopro", **weights}
    given = recipe_files.load(name, ["method.reconstruction=[7, 8]", "modules=4"])
    assert given.local.method_settings == {"reconstruction": [7, 8], "classification": [0, 1]}
    path = write(tmp_path, "copy.yaml", recipe_files.dump(given))
    assert recipe_files.load(path, ["modules=16"]).local.method == given.local.method, (
        "now they are given"
    )
    assert recipes.parse({**SMALL, "method": "infopro"}, "mine").local.method_settings == {}


def test_keys_below_another_may_come_before_it() -> None:
    given = ["method.depth=5", "method=auglocal", "method.depth=6"]
    method = recipe_files.load("demo", given).local.method
    assert method == Component("auglocal", {"depth": 6})
