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

from hpff import LocalLearner, LocalSettings
from hpff.recipes import recipe as recipes

Hpff = Callable[..., Any]
MODEL = """
from torch import nn

def build():
    blocks = [nn.Sequential(nn.Conv2d(3 if not i else 8, 8, 3, padding=1), nn.BatchNorm2d(8),
                            nn.ReLU()) for i in range(6)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(8 * 64, 10))

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


def test_the_lines_that_fit_prints_can_be_pasted(own: tuple[str, ...], hpff: Hpff) -> None:
    answer = hpff("fit", *own, "--budget", "10GB")
    assert answer.code == 0, answer.err
    assert "backprop fits" in answer.out
    python, recipe = answer.out.split("In Python:")[1].split("In a recipe:")
    call = ast.parse(python.strip()).body[0]
    assert isinstance(call, ast.Assign)
    assert isinstance(call.value, ast.Call)
    given = {word.arg: word.value for word in call.value.keywords}
    settings = {k: ast.literal_eval(v) for k, v in given.items() if k not in ("example", None)}
    LocalLearner(sys.modules["own"].build(), example=torch.zeros(2, 3, 8, 8), **settings)
    written = yaml.safe_load(recipe)
    rest = {"data": "digits", "epochs": 2, "batch_size": 16, "optimizer": {"lr": 0.1}}
    parsed = recipes.parse({"model": "resnet20", **rest, **written}, "pasted")
    assert parsed.local == LocalSettings(
        **{key: value for key, value in settings.items() if key != "num_classes"}
    )


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
