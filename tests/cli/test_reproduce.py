"""`hpff reproduce`: what is missing is trained, what is finished is kept, the table says all."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.conftest import environment
from PIL import Image
from platforms import posix_only

from hpff.experiments import paper_tables
from hpff.recipes import files as recipe_files
from hpff.runs import digests
from hpff.training import loop
from hpff.training.setup import Parts

Hpff = Callable[..., Any]

TABLE = """\
title: Digits
source: nobody's numbers
measures: [error, accuracy, memory, minutes]
rows:
  tiny-bp.yaml: {error: 10.0, memory: 0.01}
  tiny-dgl.yaml: {error: 20}
  tiny-hpff.yaml: {}
"""
ROWS = {
    "tiny-bp": "base: tiny.yaml\nmethod: bp\n",
    "tiny-dgl": "base: tiny.yaml\ncascade: 1\npatches: 1\n",
    "tiny-hpff": "base: tiny.yaml\n",
}


@pytest.fixture(autouse=True)
def table(folder: Path) -> Path:
    """Write a table of three tiny runs, and their recipes, into a folder of their own."""
    (folder / "paper").mkdir()
    (folder / "tiny.yaml").rename(folder / "paper" / "tiny.yaml")
    for name, text in ROWS.items():
        (folder / "paper" / f"{name}.yaml").write_text(text)
    (folder / "paper" / "table.yaml").write_text(TABLE)
    return folder / "paper" / "table.yaml"


def reproduce(hpff: Hpff, *arguments: str) -> Any:
    return hpff("reproduce", "paper/table.yaml", "--out", "out", *arguments)


def errors(folder: Path, out: str = "out") -> dict[str, list[float]]:
    content = json.loads((folder / out / "tables" / "table.json").read_text())
    return {row["run"]: row["measures"]["error"]["values"] for row in content["rows"]}


def test_a_table_beside_the_papers_numbers(hpff: Hpff, folder: Path) -> None:
    answer = reproduce(hpff, "--seeds", "0,1", "epochs=3")
    assert answer.code == 0, answer.err
    content = json.loads((folder / "out" / "tables" / "table.json").read_text())
    first, second, third = content["rows"]
    runs = [folder / "out" / "tiny-bp" / f"seed-{seed}" / "report.json" for seed in (0, 1)]
    reports = [json.loads(run.read_text()) for run in runs]
    found = first["measures"]["error"]
    assert found["values"] == [report["test_error_percent"] for report in reports]
    assert found["ours"] == pytest.approx(sum(found["values"]) / 2)
    assert found["difference"] == pytest.approx(found["ours"] - 10)
    assert first["measures"]["accuracy"]["ours"] == pytest.approx(100 - found["ours"])
    assert first["measures"]["accuracy"]["difference"] is None
    memory = reports[0]["peak_memory_bytes"] / 2**30
    assert first["measures"]["memory"]["values"][0] == pytest.approx(memory)
    assert second["seeds"] == [0, 1]
    assert third["measures"]["error"]["paper"] is None
    assert first["runs"][0]["machine"]["torch"]
    markdown = (folder / "out" / "tables" / "table.md").read_text()
    spread = found["spread"]
    assert f"| tiny-bp | 0, 1 | 10.00 | {found['ours']:.2f} ± {spread:.2f} | " in markdown
    for text in (markdown, answer.out):
        assert "Not as in the recipes: epochs (2, now 3)" in " ".join(text.split())
        assert "nobody's numbers" in text
    assert "    hpff reproduce paper/table.yaml --seeds 0,1 --out out epochs=3\n" in markdown
    with Image.open(folder / "out" / "tables" / "table.png") as picture:
        assert min(picture.size) > 300


def test_what_is_finished_is_kept_and_what_is_cut_goes_on(hpff: Hpff, folder: Path) -> None:
    assert reproduce(hpff, "--rows", "tiny-bp").code == 0
    before = {p: p.read_bytes() for p in (folder / "out" / "tiny-bp").rglob("*") if p.is_file()}
    answer = reproduce(hpff, "--rows", "*-bp,tiny-dgl", "--json")
    assert "tiny-bp seed 0" not in answer.err
    assert {p: p.read_bytes() for p in before} == before
    assert [row["run"] for row in json.loads(answer.out)["rows"]] == ["tiny-bp", "tiny-dgl"]
    assert json.loads(answer.out)["notes"][0] == "As in the recipes: no setting differs."
    (folder / "out" / "tiny-dgl" / "seed-0" / "report.json").unlink()
    again = reproduce(hpff, "--rows", "tiny-dgl")
    assert "tiny-dgl seed 0: out/tiny-dgl/seed-0, going on after epoch 2" in again.err


def test_a_dry_run_trains_and_writes_nothing(hpff: Hpff, folder: Path) -> None:
    answer = reproduce(hpff, "--dry-run")
    assert answer.code == 0
    assert "10.00" in answer.out
    assert "out: 3 runs to train" in answer.out
    assert not (folder / "out").exists()


def test_a_dry_run_of_what_needs_no_training_names_no_file(hpff: Hpff, folder: Path) -> None:
    answer = hpff("reproduce", "memory", "--dry-run", "--out", "out", "--rows", "resnet110-bp")
    assert answer.code == 0
    assert "out: nothing measured yet" in answer.out
    assert "memory.md" not in answer.out
    assert not (folder / "out").exists()


def test_scaling_down_is_said_and_has_a_folder_of_its_own(hpff: Hpff, folder: Path) -> None:
    arguments = ("--rows", "tiny-bp", "--epochs", "2", "--subset", "64", "--data", "digits")
    answer = hpff("reproduce", "paper/table.yaml", *arguments, "optimizer.lr=0.05")
    assert answer.code == 0, answer.err
    said = " ".join(answer.out.split())
    assert "Not as in the recipes: optimizer.lr (0.1, now 0.05), subset (128, now 64)." in said
    assert "Published" not in said, "nobody published these recipes"
    path = "runs/reproduce/epochs_2-subset_64-data_digits-optimizer.lr_0.05"
    assert (folder / path / "tiny-bp" / "seed-0" / "report.json").exists()


def test_fewer_epochs_shorten_the_warm_up(hpff: Hpff) -> None:
    answer = hpff("reproduce", "cifar10", "--dry-run", "--epochs", "25", "--rows", "resnet32-bp")
    said = " ".join(answer.out.split())
    assert "epochs (400, now 25), schedule.warmup_epochs (10, now 2)." in said


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
    real = loop.train_epoch

    def train_epoch(parts: Parts, *arguments: Any) -> Any:
        if parts.recipe.local.label() == "dgl":
            torch.empty(2**60, dtype=torch.uint8)
        return real(parts, *arguments)

    monkeypatch.setattr(loop, "train_epoch", train_epoch)
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


def test_files_of_one_name_have_folders_of_their_own(hpff: Hpff, folder: Path, table: Path) -> None:
    for place in ("a", "b"):
        (folder / "paper" / place).mkdir()
        text = ROWS[{"a": "tiny-bp", "b": "tiny-dgl"}[place]].replace("tiny", "../tiny")
        (folder / "paper" / place / "x.yaml").write_text(text)
    table.write_text(TABLE.replace("tiny-bp.yaml", "a/x.yaml").replace("tiny-dgl.yaml", "b/x.yaml"))
    answer = reproduce(hpff)
    assert answer.code == 0, answer.err
    assert list(errors(folder)) == ["a/x", "b/x", "tiny-hpff"]
    assert all((folder / "out" / place / "x" / "seed-0").is_dir() for place in ("a", "b"))
    assert reproduce(hpff, "--rows", "b/x").code == 0


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("metrics.jsonl", '{"epoch": 1', "metrics.jsonl: is damaged"),
        ("metrics.jsonl", '{"epoch": 1}', "metrics.jsonl: is damaged"),
        ("metrics.jsonl", "[" * 9999, "metrics.jsonl: is damaged"),
        ("report.json", '{"epochs": 2}', "report.json: is not a readable report"),
    ],
)
def test_a_finished_run_with_a_broken_file(
    hpff: Hpff, folder: Path, file: str, text: str, words: str
) -> None:
    """Is named, the other rows are shown, and deleting the report mends it."""
    assert reproduce(hpff, "--rows", "tiny-bp,tiny-dgl").code == 0
    before = errors(folder)
    run = folder / "out" / "tiny-bp" / "seed-0"
    (run / file).write_text(text)
    answer = reproduce(hpff, "--rows", "tiny-bp,tiny-dgl")
    assert answer.code == 2
    (fault,) = [line for line in answer.err.splitlines() if line.startswith("hpff: ")]
    assert words in fault
    assert errors(folder)["tiny-dgl"] == before["tiny-dgl"]
    (run / "report.json").unlink()
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


def test_the_packaged_tables_name_recipes_and_their_commands() -> None:
    known = {name for name, _ in recipe_files.names()}
    for name, description in paper_tables.names():
        found = paper_tables.load(name)
        assert {row.recipe for row in found.rows} <= known
        assert description.endswith(".")
        text = (recipe_files.TABLES / f"{name}.yaml").read_text()
        assert f"hpff reproduce {name}\n" in text


FORKS = """\
import json, os, sys, torch
from hpff.cli import main
import hpff.cli.reproduce, matplotlib.figure, sklearn.datasets
torch.set_num_threads(1)
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(main(json.loads(line)))
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture
def forks() -> Iterator[subprocess.Popen[str]]:
    """Run each line's command in a fork: tells its process id, and its status when it ended.

    Twenty processes that import torch each would take minutes.
    """
    command = [sys.executable, "-c", FORKS]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment(), **pipes) as process:
        yield process
        process.stdin.close()


@posix_only
def test_twenty_kills_and_the_table_is_the_same(folder: Path, forks: subprocess.Popen[str]) -> None:
    """kill -9 at random moments, then finish."""
    assert run(forks, "whole") == 0
    moments = random.Random(0)
    killed = 0
    for _ in range(20):
        more = moments.choice((0, 0, 0, 1))
        killed += run(forks, "out", moments.uniform(0, 0.2), more) == signal.SIGKILL
    assert killed > 10
    assert run(forks, "out") == 0
    for name in ROWS:
        whole, out = (folder / top / name / "seed-0" for top in ("whole", "out"))
        for file in ("model.safetensors", "recipe.yaml"):
            assert (out / file).read_bytes() == (whole / file).read_bytes()
    assert errors(folder, "out") == errors(folder, "whole")
    assert all(len(values) == 1 for values in errors(folder, "out").values())


def run(forks: subprocess.Popen[str], out: str, seconds: float | None = None, more: int = 0) -> int:
    """Start the command, kill it some seconds after `more` epochs if asked to; its status."""
    arguments = ["reproduce", "paper/table.yaml", "epochs=6", "--out", out]
    forks.stdin.write(json.dumps(arguments) + "\n")
    forks.stdin.flush()
    child = int(forks.stdout.readline())
    if seconds is not None:
        done = count_epochs(Path(out)) + more
        while count_epochs(Path(out)) < done and not ended(forks, 0.002):
            pass
        if not ended(forks, seconds):
            os.kill(child, signal.SIGKILL)
    return int(forks.stdout.readline())


def ended(forks: subprocess.Popen[str], seconds: float) -> bool:
    return bool(select.select([forks.stdout], [], [], seconds)[0])


def count_epochs(out: Path) -> int:
    files = out.glob("*/seed-0/metrics.jsonl") if out.exists() else []
    return sum(len(file.read_text().splitlines()) for file in files)


@posix_only
def test_a_disk_that_fills_and_is_emptied_again(
    folder: Path, hpff_process: Hpff, hpff: Hpff
) -> None:
    """The operating system refuses to let files grow; what then goes on gives the same table."""

    def fill() -> None:
        import resource  # not on Windows

        limit = 20_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    arguments = ("reproduce", "paper/table.yaml", "--rows", "tiny-bp,tiny-dgl", "--out")
    stopped = hpff_process(*arguments, "out", preexec=fill)
    assert stopped.code == 2
    faults = [line for line in stopped.err.splitlines() if line.startswith("hpff: ")]
    assert [line.partition(" (")[0] for line in faults] == [
        f"hpff: out/{row}/seed-0/checkpoint.pt: cannot write this file"
        for row in ("tiny-bp", "tiny-dgl")
    ]
    assert hpff(*arguments, "out").code == 0
    assert hpff(*arguments, "whole").code == 0
    assert errors(folder, "out") == errors(folder, "whole")


TRANSFER = """\
title: From digits to digits
source: nobody's numbers
measures: [stl10_position, stl10_name]
rows:
  tiny-bp.yaml: {stl10_position: 30}
"""


def test_a_table_of_another_data_set(hpff: Hpff, folder: Path, table: Path) -> None:
    """Ten classes of a run that has none of STL-10's names: by position, and named CIFAR-10's."""
    from cli.test_evaluate import STL, write_spots

    write_spots(folder / "spots", {f"class {place}": place for place in range(10)}, 8)
    write_spots(folder / "stl", {name: place for place, name in enumerate(STL)}, 8)
    changes = ("data=folder:spots", "treatment=plain", "batch_size=20", "subset=null")
    table.write_text(TRANSFER)
    answer = reproduce(hpff, *changes, "augment=false", "epochs=12", "--data", "stl10=folder:stl")
    assert answer.code == 0, answer.err
    (row,) = json.loads((folder / "out" / "tables" / "table.json").read_text())["rows"]
    measures = row["measures"]
    assert measures["stl10_position"]["ours"] > 80
    assert measures["stl10_name"]["ours"] < 80
    before = answer.out
    (folder / "stl").rename(folder / "gone")
    again = reproduce(hpff, *changes, "augment=false", "epochs=12", "--data", "stl10=folder:stl")
    assert again.out == before


def test_a_measure_that_cannot_be_had(hpff: Hpff, folder: Path, table: Path) -> None:
    table.write_text(TRANSFER)
    answer = reproduce(hpff, "--data", "stl10=folder:gone")
    assert answer.code == 2
    assert answer.err.splitlines()[-1].startswith("hpff: gone does not exist; expected train/")
    assert (folder / "out" / "tiny-bp" / "seed-0" / "report.json").exists()
