"""`hpff export`: a folder for a model hub, whose backbone loads as its card says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from cli.conftest import environment
from cli.test_evaluate import write_spots
from platforms import posix_only

from hpff.recipes import files as recipe_files
from hpff.runs.finished_run import FinishedRun

Hpff = Callable[..., Any]

# This machine's torchvision may be one that needs hpff's help to be imported at all.
CHECK = """\
from hpff.torch_support.torchvision_import import torchvision
torchvision()
{code}
import torch
images = safetensors.torch.load_file("../images.safetensors")["images"]
logits = model.eval()(images)
safetensors.torch.save_file({{"logits": logits.detach()}}, "../logits.safetensors")
"""


@pytest.fixture
def trained(hpff: Hpff, folder: Path) -> Callable[[str], Path]:
    """Return a maker of runs of a model on small images of three colors."""
    write_spots(folder / "spots", {"left": 0, "middle": 1, "right": 3}, 32)

    def make(model: str) -> Path:
        changes = ["method=bp", "data=folder:spots", "treatment=plain", "batch_size=8"]
        model = f"model={model}"
        answer = hpff("train", "tiny.yaml", model, "subset=null", *changes, "--out", "run")
        assert answer.code == 0, answer.err
        return folder / "run"

    return make


def load_as_the_card_says(folder: Path, images: torch.Tensor) -> torch.Tensor:
    """Run the card's Python in a process of its own; its model's answers to images."""
    card = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    safetensors.torch.save_file({"images": images}, folder.parent / "images.safetensors")
    script = folder.parent / "script.py"
    script.write_text(CHECK.format(code=code))
    subprocess.run([sys.executable, script], cwd=folder, env=environment(), check=True)
    return safetensors.torch.load_file(folder.parent / "logits.safetensors")["logits"]


@pytest.mark.long
@pytest.mark.parametrize(
    "model",
    ["{name: resnet20, width: 4}", "torchvision/shufflenet_v2_x0_5", "timm/test_resnet"],
)
def test_a_backbone_loads_as_its_card_says(
    hpff: Hpff, folder: Path, trained: Callable[[str], Path], model: str
) -> None:
    run = trained(model)
    answer = hpff("export", "run", "hub/model")
    assert answer.code == 0, answer.err
    images = torch.rand(2, 3, 32, 32)
    found = load_as_the_card_says(folder / "hub" / "model", images)
    with torch.no_grad():
        expected = FinishedRun.read(run).model()(images)
    torch.testing.assert_close(found, expected)


def test_what_an_export_holds(hpff: Hpff, folder: Path) -> None:
    changes = ("cascade=1", "patches=1", "held_out=100")
    assert hpff("train", "tiny.yaml", *changes, "--out", "run").code == 0
    answer = hpff("export", "run", "out")
    names = [
        "README.md",
        "config.json",
        "metrics.csv",
        "metrics.jsonl",
        "model.safetensors",
        "recipe.yaml",
        "report.json",
    ]
    assert answer.out == f"out: {', '.join(names)}\n"
    for name in ("model.safetensors", "metrics.jsonl", "report.json"):
        assert (folder / "out" / name).read_bytes() == (folder / "run" / name).read_bytes()
    recipe = recipe_files.load("out/recipe.yaml")
    assert recipe == recipe_files.load("tiny.yaml", changes)
    config = json.loads((folder / "out" / "config.json").read_text())
    assert config["settings"] == {"width": 4}
    assert config["image_shape"] == [1, 8, 8]
    card = (folder / "out" / "README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    accuracy = header["model-index"][0]["results"][0]["metrics"][0]["value"]
    report = json.loads((folder / "run" / "report.json").read_text())
    assert accuracy == pytest.approx(1 - report["test_error_percent"] / 100, abs=1e-4)
    assert "trained by dgl in 3 local modules (the independent level)" in card
    assert "in_channels=1" in card
    assert "of 100 held-out training images right" in card


def test_what_cannot_be_exported(hpff: Hpff, folder: Path) -> None:
    assert hpff("export", "gone", "out").err.startswith("hpff: gone: holds no run")
    assert hpff("train", "tiny.yaml", "--out", "run").code == 0
    assert "run: exists already; choose another" in hpff("export", "run", "run").err
    (folder / "file").write_text("")
    answer = hpff("export", "run", "file/out")
    assert answer.code == 2
    assert "file/out: cannot write this folder (File exists)" in answer.err
    weights = folder / "run" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert "model.safetensors: is damaged" in hpff("export", "run", "out").err
    assert not (folder / "out").exists()
    assert [path for path in folder.iterdir() if path.name.endswith(".tmp")] == []


@posix_only
def test_what_a_killed_export_left_is_gone_after_the_next(
    hpff: Hpff, hpff_process: Hpff, folder: Path
) -> None:
    """Killed when all is written but the name."""
    assert hpff("train", "tiny.yaml", "--out", "run").code == 0
    script = (
        "import os; from pathlib import Path; from hpff.cli import main\n"
        "Path.rename = lambda *_: os.kill(os.getpid(), 9)\n"
        "main(['export', 'run', 'hub/out'])"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment(), check=False)
    assert done.returncode == -9
    (left,) = (folder / "hub").iterdir()
    assert (left / "out" / "model.safetensors").exists()
    assert hpff("export", "run", "hub/other").code == 0
    assert [path.name for path in (folder / "hub").iterdir()] == ["other"]


@posix_only
def test_names_from_a_data_set_cannot_write_into_the_card(hpff: Hpff, folder: Path) -> None:
    odd = ["a\n# Title", "b`*_<script>|", "c\x1b[31m", "[d](javascript:x)"]
    write_spots(folder / "spots", {name: place for place, name in enumerate(odd)}, 32)
    changes = ["method=bp", "data=folder:spots", "treatment=plain", "batch_size=8", "subset=null"]
    assert hpff("train", "tiny.yaml", *changes, "--out", "run").code == 0
    assert hpff("export", "run", "out").code == 0
    card = (folder / "out" / "README.md").read_text()
    assert "\n# Title" not in card
    assert "\x1b" not in card
    listed = next(line for line in card.splitlines() if line.startswith("Classes, in order: "))
    assert r"b\`\*\_\<script\>\|, " in listed
    assert r"\[d\](javascript:x)" in listed
    assert r"a\\n# Title" in listed
    config = json.loads((folder / "out" / "config.json").read_text())
    assert sorted(config["class_names"]) == sorted(odd)
