"""What `hpff reproduce` refuses, and what it names and goes past."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.tiny_table import TABLE, TRANSFER, Hpff, errors, reproduce

from hpff.runs import digests
from hpff.training import following
from hpff.training.setup import Parts

pytestmark = pytest.mark.usefixtures("table")


def test_a_run_that_fails_does_not_keep_the_others_from_going(hpff: Hpff, folder: Path) -> None:
    (folder / "paper" / "tiny-dgl.yaml").write_text("base: tiny.yaml\noptimizer: {lr: 1e30}\n")
    answer = reproduce(hpff)
    assert answer.code == 2
    faults = [line for line in answer.err.splitlines() if line.startswith("hpff: ")]
    assert len(faults) == 1
    assert "is not a finite number" in faults[0]
    assert len(errors(folder)["tiny-bp"]) == len(errors(folder)["tiny-hpff"]) == 1
    assert errors(folder)["tiny-dgl"] == []
    assert "Not finished: tiny-dgl" in answer.out
    assert "| tiny-dgl | – | 20.00 | – | – |" in (folder / "out/tables/table.md").read_text()


def test_a_run_without_memory_is_named_and_the_others_go_on(
    hpff: Hpff, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = following.train_epoch

    def train_epoch(parts: Parts, *arguments: Any) -> Any:
        if parts.recipe.local.label() == "dgl":
            torch.empty(2**60, dtype=torch.uint8)
        return real(parts, *arguments)

    monkeypatch.setattr(following, "train_epoch", train_epoch)
    answer = reproduce(hpff)
    assert answer.code == 2
    (fault,) = [line for line in answer.err.splitlines() if line.startswith("hpff: ")]
    assert "tiny-dgl/seed-0: out of memory; try a smaller batch_size" in fault
    assert len(errors(folder)["tiny-bp"]) == len(errors(folder)["tiny-hpff"]) == 1


def test_a_folder_with_runs_of_another_recipe(hpff: Hpff, folder: Path) -> None:
    """Is named, and the other rows are trained and shown."""
    assert reproduce(hpff, "--rows", "tiny-bp").code == 0
    answer = reproduce(hpff, "--rows", "tiny-bp,tiny-dgl", "--epochs", "3")
    assert answer.code == 2
    (fault,) = [line for line in answer.err.splitlines() if line.startswith("hpff: ")]
    assert "tiny-bp/seed-0: holds a run of another recipe" in fault
    assert "epochs (2, now 3)" in fault
    assert errors(folder)["tiny-bp"] == []
    assert len(errors(folder)["tiny-dgl"]) == 1


DAMAGES = [
    ("metrics.jsonl", '{"epoch": 1', "metrics.jsonl: is damaged"),
    ("metrics.jsonl", '{"epoch": 1}', "metrics.jsonl: is damaged"),
    ("metrics.jsonl", "[" * 9999, "metrics.jsonl: is damaged"),
    ("report.json", '{"epochs": 2}', "report.json: is not a readable report"),
]


@pytest.mark.long
def test_a_finished_run_with_a_broken_file(hpff: Hpff, folder: Path) -> None:
    """Is named, the other rows are shown, and deleting the report mends it."""
    assert reproduce(hpff, "--rows", "tiny-bp,tiny-dgl").code == 0
    before = errors(folder)
    run = folder / "out" / "tiny-bp" / "seed-0"
    for file, text, words in DAMAGES:
        whole = (run / file).read_bytes()
        (run / file).write_text(text)
        answer = reproduce(hpff, "--rows", "tiny-bp,tiny-dgl")
        assert answer.code == 2
        (fault,) = [line for line in answer.err.splitlines() if line.startswith("hpff: ")]
        assert words in fault
        assert errors(folder)["tiny-dgl"] == before["tiny-dgl"]
        if file == "report.json":
            (run / file).unlink()
        else:
            (run / file).write_bytes(whole)
    (run / "metrics.jsonl").write_text(DAMAGES[0][1])
    assert reproduce(hpff, "--rows", "tiny-bp,tiny-dgl").code == 0
    assert errors(folder) == before


def test_a_report_without_a_number(hpff: Hpff, folder: Path, table: Path) -> None:
    table.write_text(TABLE.replace("[error, ", "[top5, error, "))
    assert reproduce(hpff, "--rows", "tiny-bp").code == 0
    report = folder / "out" / "tiny-bp" / "seed-0" / "report.json"
    content = json.loads(report.read_text())
    del content["test_top5_error_percent"]
    report.write_bytes(digests.json_text(digests.seal_json(content)))
    answer = reproduce(hpff, "--rows", "tiny-bp")
    assert answer.code == 2
    assert "report.json: has no number for test_top5_error_percent" in answer.err
    assert len(errors(folder)["tiny-bp"]) == 1


@pytest.mark.parametrize("name", ["tables", "tiny-bp"])
def test_a_file_in_the_place_of_a_folder(hpff: Hpff, folder: Path, name: str) -> None:
    (folder / "out").mkdir()
    (folder / "out" / name).write_text("mine")
    answer = reproduce(hpff, "--rows", "tiny-bp")
    assert answer.code == 2
    (fault,) = [line for line in answer.err.splitlines() if line.startswith("hpff: ")]
    assert f"out/{name}" in fault
    assert (folder / "out" / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cifar"], ["cifar: unknown table", "did you mean cifar10?"]),
        (["gone.yaml"], ["gone.yaml: cannot read this table (No such file"]),
        (["paper/tiny.yaml"], ["paper/tiny.yaml: is not a table, expected the keys title"]),
        (["paper/table.yaml", "--rows", "tiny"], ["--rows: 'tiny' is no row of table", "tiny-bp"]),
        (["paper/table.yaml", "--seeds", "0,x"], ["--seeds: is '0,x'"]),
        (["paper/table.yaml", "--seeds", ""], ["--seeds: is ''"]),
        (["paper/table.yaml", "--seeds", "0,1", "seed=3"], ["seed=3: is given beside --seeds"]),
        (["paper/table.yaml", "--rows", ""], ["--rows: is ''"]),
        (["paper/table.yaml", "--epochs", "0"], ["epochs: is 0"]),
        (["paper/table.yaml", "--epochs", "-1"], ["epochs: is -1"]),
        (["paper/table.yaml", "--out", "paper/table.yaml"], ["--out: paper/table.yaml is a file"]),
        (["paper/table.yaml", "--epochs", "two"], ["--epochs"]),
        (["paper/table.yaml", "--subset", "9"], ["subset: is 9, expected at least batch_size"]),
        (["paper/table.yaml", "--data", "digit"], ["data: is digit", "did you mean digits?"]),
        (["paper/table.yaml", "--data", "svhn="], ["--data: is 'svhn='"]),
        (["paper/table.yaml", "--data", "svhn=digits"], ["no chosen row of table is on svhn"]),
        (["paper/table.yaml", "--data", "folder:my #1: a"], ["my #1: a does not exist"]),
        (
            ["paper/table.yaml", "--data", "a", "--data", "b"],
            ["--data: is 'b', expected DATA once"],
        ),
        (["paper/table.yaml", "--data", "parquet:gone"], ["gone", "does not exist"]),
        (["paper/table.yaml", "model.width=0"], ["model: width is 0"]),
    ],
    ids=lambda value: " ".join(value)[:50],
)
def test_wrong_commands(hpff: Hpff, folder: Path, arguments: list[str], words: list[str]) -> None:
    answer = hpff("reproduce", *arguments)
    assert answer.code == 2
    lines = answer.err.splitlines()
    assert all(line.startswith("hpff: ") for line in lines), answer.err
    assert all(word in lines[0] for word in words), answer.err
    assert "Traceback" not in answer.err
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("measures: [error, ", "measures: [errors, ", "measures: is ['errors'"),
        ("title: Digits\n", "title: 3\n", "title: is 3, expected text"),
        ("{error: 20}", "{error: twenty}", "expected a recipe and numbers"),
        ("{error: 20}", "{top5: 20}", "expected a recipe and numbers"),
        ("tiny-dgl.yaml", "gone.yaml", "gone.yaml: cannot read this recipe"),
        ("tiny-dgl.yaml", "../tiny-bp.yaml", "tiny-bp.yaml: another row is called tiny-bp, too"),
    ],
)
def test_a_wrong_table(hpff: Hpff, table: Path, before: str, after: str, words: str) -> None:
    table.write_text(TABLE.replace(before, after))
    answer = reproduce(hpff)
    assert answer.code == 2
    assert len(answer.err.splitlines()) == 1
    assert words in answer.err


def test_a_measure_that_cannot_be_had(hpff: Hpff, folder: Path, table: Path) -> None:
    table.write_text(TRANSFER)
    answer = reproduce(hpff, "--data", "stl10=folder:gone")
    assert answer.code == 2
    assert answer.err.splitlines()[-1].startswith("hpff: gone does not exist; expected train/")
    assert (folder / "out" / "tiny-bp" / "seed-0" / "report.json").exists()
