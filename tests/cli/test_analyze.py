"""`hpff analyze`: runs and models from elsewhere, what it says, and what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import safetensors.torch
import torch
from cli.conftest import TINY

from hpff import models
from hpff.cli import main
from hpff.cli.analyze import AnalyzeOptions, _subjects  # imports the analyses, too
from hpff.runs.finished_run import FinishedRun

Hpff = Callable[..., Any]
QUICK = ("--samples", "60", "--embedded", "20", "--pictures", "1", "--gradient-batches", "1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with runs by HPFF, DGL alone and backprop, to be copied."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY)
    for name, changes in {
        "hpff": [],
        "dgl": ["cascade=1", "patches=1"],
        "bp": ["method=bp"],
    }.items():
        out = ["threads=1", "epochs=2", "--out", str(folder / name)]
        assert main(["train", str(folder / "tiny.yaml"), *changes, *out]) == 0
    return folder


@pytest.fixture
def runs(folder: Path, trained: Path) -> Path:
    """Return a folder with copies of them, which the test works in."""
    for name in ("hpff", "dgl", "bp"):
        shutil.copytree(trained / name, folder / name)
    return folder


@pytest.fixture(autouse=True)
def _no_tsne(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pictures take most of the time, and have tests of their own."""
    monkeypatch.setattr(
        sys.modules["hpff.analysis.embeddings"], "_tsne", lambda rows, seed: rows[:, :2]
    )


class Reader(HTMLParser):
    """Checks that tags close in order, and keeps what is shown and where it leads."""

    VOID = frozenset({"meta", "link", "img", "br", "path", "circle", "rect", "image"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: Path) -> Reader:
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    assert reader.open == []
    assert all(link.startswith("data:") for link in reader.links)
    assert "script" not in page.read_text(encoding="utf-8")
    return reader


def test_runs_side_by_side(hpff: Hpff, runs: Path) -> None:
    answer = hpff("analyze", "hpff", "dgl", "bp", *QUICK, "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert [network["label"] for network in found["networks"]] == ["dgl+hpff", "dgl", "bp"]
    hpff_run, dgl, backprop = found["networks"]
    assert [len(network["probes"]) for network in found["networks"]] == [3, 3, 3]
    assert {g["level"] for g in hpff_run["gradients"]} == {"independent", "cascade", "both"}
    assert {g["level"] for g in dgl["gradients"]} == {"independent"}
    assert backprop["gradients"] == []
    levels = [(e["module"], e["level"]) for e in hpff_run["exits"]]
    assert levels == [(1, "independent"), (2, "cascade"), (2, "independent"), (3, "final")]
    assert [(e["module"], e["level"]) for e in backprop["exits"]] == [(3, "final")]
    assert len(found["cka"]) == 3
    assert found["cka"][0]["values"][1][1] == pytest.approx(1)
    page = read(Path(found["report"]))
    for words in (
        "hpff analyze hpff dgl bp --samples 60",
        "Linear probes",
        "Patch agreement",
        "Angle to backprop",
        "t-SNE: dgl+hpff",
        "Grad-CAM",
        "Memory over the step",
        "Recipe: bp",
        "torch",
    ):
        assert words in page.text, words


def test_the_final_exit_is_the_runs_own_error(hpff: Hpff, runs: Path) -> None:
    """On all test images, by the learner's own model."""
    report = json.loads((runs / "hpff" / "report.json").read_text())
    answer = hpff("analyze", "hpff", *QUICK, "--samples", "5000", "--json")
    found = json.loads(answer.out)
    final = found["networks"][0]["exits"][-1]
    assert final["samples"] == 360
    assert final["error"] == pytest.approx(report["test_error_percent"])
    assert Path(found["report"]) == Path("hpff/analysis/report.html")


def test_the_table_on_the_terminal(hpff: Hpff, runs: Path) -> None:
    answer = hpff("analyze", "hpff", "bp", *QUICK, "--out", "here", "--figures")
    assert answer.code == 0, answer.err
    assert "probe" in answer.out
    assert max(map(len, answer.out.splitlines())) <= 80
    drawn = {path.name for path in Path("here/figures").iterdir()}
    assert {"probes.svg", "exits.svg", "cka-dgl+hpff-bp.svg", "t-sne-bp-module-1.svg"} <= drawn
    for path in Path("here/figures").iterdir():
        ElementTree.parse(path)
    assert "here/report.html: open it in a browser" in answer.out.replace("\\", "/")


def test_runs_that_are_called_alike_are_told_apart(hpff: Hpff, runs: Path) -> None:
    shutil.copytree("dgl", "again")
    subjects = _subjects(AnalyzeOptions(runs=["dgl", "again", "bp"]))
    assert [each.label for each in subjects] == ["dgl, seed 0 (dgl)", "dgl, seed 0 (again)", "bp"]
    answer = hpff("analyze", "dgl", "again", *QUICK, "--labels", "one,<b>two</b>", "--json")
    page = Path(json.loads(answer.out)["report"]).read_text()
    assert "&lt;b&gt;two&lt;/b&gt;" in page
    assert "<b>two" not in page


def test_without_its_checkpoint_a_run_is_its_backbone_alone(hpff: Hpff, runs: Path) -> None:
    whole = json.loads(hpff("analyze", "hpff", *QUICK, "--json").out)["networks"][0]
    (runs / "hpff" / "checkpoint.pt").unlink()
    answer = hpff("analyze", "hpff", *QUICK, "--json")
    assert answer.code == 0, answer.err
    bare = json.loads(answer.out)["networks"][0]
    assert bare["exits"] == bare["gradients"] == []
    assert bare["probes"] == whole["probes"]


def test_weights_from_elsewhere(hpff: Hpff, runs: Path) -> None:
    """The same network by its file alone has the same features, however it was saved."""
    run = json.loads(hpff("analyze", "bp", *QUICK, "--json").out)["networks"][0]
    state = FinishedRun.read(Path("bp")).model().state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, "ddp.pth")
    state = {name: value.contiguous() for name, value in state.items()}
    safetensors.torch.save_file(state, "plain.safetensors")
    for file in ("ddp.pth", "plain.safetensors"):
        words = [f"resnet20,width=4={file}", "--data", "digits", "--modules", "3"]
        answer = hpff("analyze", *words, *QUICK, "--json")
        assert answer.code == 0, answer.err
        found = json.loads(answer.out)["networks"][0]
        assert found["label"] == file
        assert [e["name"] for e in found["probes"]] == [e["name"] for e in run["probes"]]
        assert found["separation"] == run["separation"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gone"], "gone: holds no run (no recipe.yaml)"),
        ([], "Missing argument"),
        (["hpff", "hpff"], "named twice"),
        (["hpff", "--samples", "0"], "--samples: is 0, expected a whole number of at least 8"),
        (["hpff", "--embedded", "2"], "--embedded: is 2"),
        (["hpff", "--images", "3,x"], "--images: is '3,x', expected whole numbers"),
        (["hpff", "--images", "9999"], "has 360 test images"),
        (["hpff", "--modules", "99"], "modules=99"),
        (["hpff", "--data", "nothing"], 'there is no dataset "nothing"'),
        (["hpff", "--labels", "a,b"], "--labels: names 2 networks"),
        (["hpff", "--image-size", "8"], "--image-size: is for a model's weights"),
        (["resnet20=w.pth"], "name them by --data"),
        (["resnet20=w.pth", "--data", "digits"], "w.pth: cannot read these weights"),
        (["resnet20=tiny.yaml", "--data", "digits"], "tiny.yaml: is no file of weights"),
        (["resnet21=tiny.yaml", "--data", "digits"], "unknown model 'resnet21'"),
        (["resnet20,wide=tiny.yaml", "--data", "digits"], "wide: is no setting of a model"),
        (["hpff", "--out", "tiny.yaml"], "--out: tiny.yaml is a file"),
    ],
)
def test_wrong_input_is_one_line(hpff: Hpff, runs: Path, arguments: list[str], words: str) -> None:
    before = sorted(runs.rglob("*"))
    answer = hpff("analyze", *arguments)
    assert answer.code == 2
    assert words in answer.err
    assert answer.err.count("\n") == 1
    assert sorted(runs.rglob("*")) == before


def test_weights_that_do_not_fit_or_could_run_code(hpff: Hpff, runs: Path) -> None:
    torch.save(models.create("resnet20", width=8).state_dict(), "wide.pth")
    answer = hpff("analyze", "resnet20,width=4=wide.pth", "--data", "digits")
    assert answer.code == 2
    assert "wide.pth: does not fit resnet20" in answer.err
    torch.save(models.create("resnet20", width=4), "whole.pth")
    answer = hpff("analyze", "resnet20,width=4=whole.pth", "--data", "digits")
    assert answer.code == 2
    assert "holds a pickle that could run code" in answer.err
    torch.save([1, 2], "list.pth")
    answer = hpff("analyze", "resnet20,width=4=list.pth", "--data", "digits")
    assert "holds no weights" in answer.err


def test_runs_on_other_data_need_data_that_all_are_shown(
    hpff: Hpff, runs: Path, parquet: Path
) -> None:
    changes = ["data=parquet:data", "treatment=plain", "subset=null", "epochs=2"]
    made = hpff("train", "tiny.yaml", *changes, "--out", "other")
    assert made.code == 0, made.err
    answer = hpff("analyze", "hpff", "other", *QUICK)
    assert answer.code == 2
    assert "(other): was trained on other data" in answer.err
    assert "name the data that all are shown by --data" in answer.err
    answer = hpff("analyze", "hpff", "other", *QUICK, "--data", "digits")
    assert answer.code == 2
    assert "channels" in answer.err


def test_an_unfinished_run(hpff: Hpff, runs: Path) -> None:
    (runs / "hpff" / "report.json").unlink()
    answer = hpff("analyze", "hpff")
    assert answer.code == 2
    assert "its run has not ended" in answer.err


def test_a_checkpoint_of_another_training(hpff: Hpff, runs: Path) -> None:
    shutil.copy("dgl/checkpoint.pt", "hpff/checkpoint.pt")
    answer = hpff("analyze", "hpff", *QUICK)
    assert answer.code == 2
    assert "is not of the run's last epoch" in answer.err


def test_training_leaves_a_report(hpff: Hpff, runs: Path) -> None:
    page = read(runs / "hpff" / "report.html")
    for words in (
        "dgl+hpff: resnet20 on digits",
        "hpff train",
        "Error over the epochs",
        "Independent loss by module",
        "Memory over the step",
        "batch_size: 64",
        "cpu",
    ):
        assert words in page.text, words


def test_a_report_that_cannot_be_written_is_a_warning(hpff: Hpff, folder: Path) -> None:
    (folder / "out").mkdir()
    assert hpff("train", "tiny.yaml", "epochs=2", "--out", "out/run").code == 0
    (folder / "out" / "run" / "report.html").unlink()
    (folder / "out" / "run" / "report.html").mkdir()
    (folder / "out" / "run" / "report.json").unlink()
    answer = hpff("train", "tiny.yaml", "epochs=2", "--out", "out/run", "--resume")
    assert answer.code == 0
    assert "report.html: was not written" in answer.err
    assert (folder / "out" / "run" / "report.json").exists()


def test_a_comparison_leaves_a_report(hpff: Hpff, folder: Path) -> None:
    told = ("--methods", "bp,dgl", "epochs=2", "--out", "both")
    assert hpff("compare", "tiny.yaml", *told).code == 0
    page = read(folder / "both" / "report.html")
    for words in ("hpff compare tiny.yaml", "× BP", "dgl, seed 0", "Memory over the step"):
        assert words in page.text, words


def test_exits_are_tested_as_training_goes_on(hpff: Hpff, folder: Path) -> None:
    assert hpff("train", "tiny.yaml", "--exits", "--out", "run").code == 0
    history = [json.loads(row) for row in Path("run/metrics.jsonl").read_text().splitlines()]
    for entry in history:
        assert len(entry["independent_errors"]) == 3
        assert len(entry["cascade_errors"]) == 2
        own = entry["test_error_percent"]
        assert entry["independent_errors"][-1] == entry["cascade_errors"][-1] == pytest.approx(own)
    found = json.loads(hpff("analyze", "run", *QUICK, "--samples", "5000", "--json").out)
    exits = {(e["module"], e["level"]): e["error"] for e in found["networks"][0]["exits"]}
    assert abs(exits[1, "independent"] - history[-1]["independent_errors"][0]) < 5
    assert "Independent exits over the epochs" in read(Path("run/report.html")).text
    assert hpff("train", "tiny.yaml", "--out", "without").code == 0
    assert (
        Path("run/model.safetensors").read_bytes() == Path("without/model.safetensors").read_bytes()
    )


def test_a_reproduced_table_leaves_a_report(hpff: Hpff, table: Path) -> None:
    answer = hpff("reproduce", str(table), "--out", "out", "--rows", "tiny-hpff")
    assert answer.code == 0, answer.err
    (found,) = Path("out/tables").glob("*.html")
    page = read(found)
    assert "paper" in page.text
    assert "Error over the epochs" in page.text
    assert ".html" in answer.out
