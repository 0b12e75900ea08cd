"""`hpff fit`: what fits, and lines that work as they are pasted; models of one's own."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hpff import LocalLearner
from hpff.memory import Strategy
from hpff.recipes import files as recipe_files

Hpff = Callable[..., Any]
MODEL = """
from torch import nn

def build():
    blocks = [nn.Sequential(nn.Conv2d(3 if not i else 8, 8, 3, padding=1), nn.BatchNorm2d(8),
                            nn.ReLU()) for i in range(6)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(8 * 64, 10))

def deep():
    blocks = [nn.Sequential(nn.Conv2d(3 if not i else 8, 8, 3, padding=1), nn.BatchNorm2d(8),
                            nn.ReLU()) for i in range(12)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

def wrong():
    return 7
"""


@pytest.fixture(autouse=True)
def _not_imported_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "own", None)
    monkeypatch.delitem(sys.modules, "own")


@pytest.fixture
def own(folder: Path) -> tuple[str, ...]:
    """Options for a model of one's own."""
    (folder / "own.py").write_text(MODEL)
    return ("own:build", "--import", "own.py", "--image", "3,8,8", "--batch", "16")


def least_of_backprop(hpff: Hpff, *own: str) -> int:
    baselines = json.loads(hpff("fit", *own, "--budget", "10GB", "--json").out)["baselines"]
    return min(row["peak_bytes"] for row in baselines)


def test_the_lines_that_fit_prints_can_be_pasted(own: tuple[str, ...], hpff: Hpff) -> None:
    answer = hpff("fit", *own, "--budget", "10GB")
    assert answer.code == 0, answer.err
    assert "backprop fits, and learns as it always does" in answer.out
    assert "peak, MiB" in answer.out
    assert "within 9.31 GiB" in " ".join(answer.out.split())
    assert pasted(answer.out) == ["dgl"]
    answer = hpff("fit", *own, "--budget", f"{least_of_backprop(hpff, *own)}B")
    assert "Backprop fits, recomputed by blocks" in answer.out
    assert pasted(answer.out) == ["bp"]
    assert "recompute='blocks'" in answer.out
    assert "recompute_budget" not in answer.out
    answer = hpff("fit", *own, "--budget", f"{1.3 * least_of_backprop(hpff, *own):.0f}B")
    assert pasted(answer.out)[0] == "bp"
    assert "recompute_budget=1." in answer.out


@pytest.mark.long
def test_so_can_those_of_a_preset(own: tuple[str, ...], hpff: Hpff) -> None:
    deep = ("own:deep", *own[1:3], "--image", "3,32,32", "--batch", "64")
    answer = hpff("fit", *deep, "--budget", f"{least_of_backprop(hpff, *deep) - 1}B")
    assert "Nearest to backprop's error in our study: preset=" in answer.out
    assert pasted(answer.out, "deep") == ["auglocal", "dgl"]


def pasted(out: str, model: str = "build") -> list[str]:
    """Of each learner and recipe that is printed the method."""
    parts = [part.split("In a recipe:") for part in out.split("In Python:")[1:]]
    return [pasted_method(python, recipe, model) for python, recipe in parts]


def pasted_method(python: str, recipe: str, model: str) -> str:
    call = ast.parse(python.strip()).body[0]
    assert isinstance(call, ast.Assign)
    assert isinstance(call.value, ast.Call)
    given = {word.arg: word.value for word in call.value.keywords}
    settings = {k: ast.literal_eval(v) for k, v in given.items() if k not in ("example", None)}
    learner = LocalLearner(
        getattr(sys.modules["own"], model)(), example=torch.zeros(2, 3, 8, 8), **settings
    )
    written = yaml.safe_load(recipe.strip("\n").split("\n\n")[0])
    rest = {"data": "digits", "epochs": 2, "batch_size": 16, "optimizer": {"lr": 0.1}}
    Path("pasted.yaml").write_text(yaml.safe_dump({"model": "resnet20", **rest, **written}))
    loaded = recipe_files.load("pasted.yaml").local
    assert str(Strategy(loaded)) == str(Strategy(learner.settings))
    assert loaded == learner.settings or loaded.is_backprop, "which has no cascades, whatever k is"
    return loaded.method_name


def test_a_method_that_was_asked_for_is_the_only_one(own: tuple[str, ...], hpff: Hpff) -> None:
    answer = hpff("fit", *own, "--budget", "200kB", "--method", "predsim")
    labels = {line.split("  ")[0] for line in answer.out.splitlines() if "  no" in line}
    assert {label.partition("+")[0] for label in labels} == {"bp", "bp recompute=blocks", "predsim"}
    assert "Nothing that was tried fits" in answer.out


def test_where_parameters_alone_do_not_fit_it_says_so(own: tuple[str, ...], hpff: Hpff) -> None:
    answer = hpff("fit", *own, "--budget", "1kB", "--optimizer", "adamw")
    assert "No way of training fits: parameters, and what adamw keeps of them, take" in answer.out
    assert "Nothing that was tried fits" not in answer.out


def test_fit_as_json_is_the_same(own: tuple[str, ...], hpff: Hpff) -> None:
    found = json.loads(hpff("fit", *own, "--budget", "1GiB", "--json").out)
    assert found["workload"]["model"] == "build"
    assert found["budget_bytes"] == 2**30
    assert found["best"] in found["tried"]
    assert found["baselines"][0]["label"] == "bp"
    assert all(row["fits"] == (row["peak_bytes"] <= 2**30) for row in found["tried"])


def test_plan_takes_such_models_and_light_networks(own: tuple[str, ...], hpff: Hpff) -> None:
    options = ("--methods", "dgl", "--recompute", "blocks", "--light", "--json")
    rows = json.loads(hpff("plan", *own, *options).out)["rows"]
    local = [row for row in rows if row["label"].startswith("dgl")]
    assert {row["auxiliary_width"] for row in local} == {128}
    assert "dgl+hpff recompute=blocks" in [row["label"] for row in local]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("resnet20",), "Missing option '--budget'"),
        (("resnet20", "--budget", "much"), "--budget: is 'much', expected a number and a unit"),
        (("resnet7", "--budget", "1GB"), "unknown model 'resnet7'"),
        (("resnet20", "--budget", "1GB", "--method", "dgi"), "did you mean dgl?"),
        (("resnet20", "--budget", "1GB", "--batch", "1"), "batch is 1; expected 2 or more"),
        (("own:build", "--budget", "1GB", "--import", "own.py"), "--image C,H,W"),
        (("own:build", "--budget", "1GB", "--image", "3,8,8"), "add --import own"),
        (("own:none", "--budget", "1GB", "--image", "3,8,8", "--import", "own.py"), "no function"),
        (("own:wrong", "--budget", "1GB", "--image", "3,8,8", "--import", "own.py"), "nn.Module"),
        (("resnet20", "--budget", "1GB", "--import", "no_such_module"), "no_such_module"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: tuple[str, ...], words: str, folder: Path, hpff: Hpff
) -> None:
    (folder / "own.py").write_text(MODEL)
    answer = hpff("fit", *arguments)
    assert answer.code == 2
    assert words in answer.err
