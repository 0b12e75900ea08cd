from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from platforms import posix_only

from hpff.cli import main
from hpff.recipes import files as recipe_files
from hpff.recipes.recipe import Recipe
from hpff.training import following, memory_check
from hpff.training.setup import Parts

Hpff = Callable[..., Any]


def test_help_needs_no_torch() -> None:
    program = (
        "import sys; from hpff.cli import main\n"
        "codes = [main([*words, '--help']) for words in ([], ['train'], ['compare'], ['list'])]\n"
        "assert codes == [0, 0, 0, 0] and 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "RECIPE" in done.stdout


def test_version(hpff: Hpff) -> None:
    answer = hpff("--version")
    assert answer.code == 0
    assert re.fullmatch(r"hpff \d+\.\d+\.\d+\n", answer.out)


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("models", "resnet110"),
        ("datasets", "digits"),
        ("methods", "dgl"),
        ("presets", "balanced"),
        ("recipes", "demo"),
        ("tables", "cifar10"),
    ],
)
def test_lists(hpff: Hpff, what: str, name: str) -> None:
    answer = hpff("list", what)
    assert answer.code == 0
    assert name in answer.out
    entries = json.loads(hpff("list", what, "--json").out)
    assert name in [entry["name"] for entry in entries]
    assert all(entry["description"] for entry in entries)


def test_a_shown_recipe_is_a_recipe(hpff: Hpff, folder: Path) -> None:
    shown = hpff("recipe", "show", "demo", "epochs=3").out
    (folder / "mine.yaml").write_text(shown)
    assert recipe_files.load("mine.yaml") == recipe_files.load("demo", ["epochs=3"])
    plain = json.loads(hpff("recipe", "show", "demo", "--json").out)
    assert plain == recipe_files.load("demo").to_plain()


def test_a_copied_recipe_checks_and_names_its_command(hpff: Hpff, folder: Path) -> None:
    assert hpff("recipe", "copy", "demo", "mine.yaml", "seed=4").code == 0
    assert "hpff train mine.yaml" in (folder / "mine.yaml").read_text()
    assert recipe_files.load("mine.yaml") == recipe_files.load("demo", ["seed=4"])
    assert hpff("recipe", "check", "mine.yaml").out == "mine.yaml: no faults\n"


def test_check_does_not_download(hpff: Hpff) -> None:
    answer = hpff("recipe", "check", "cifar10/resnet32-bp")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == "cifar10/resnet32-bp: no faults (built without cifar10 itself)\n"
    assert hpff("recipe", "check", "imagenet/resnet101-bp", "modules=99").code == 0
    refused = hpff("recipe", "check", "imagenet/resnet101-k4-infopro", "modules=99")
    assert refused.code == 2
    assert "modules=99" in refused.err


def test_train_counts_its_folders_and_resumes_the_newest(hpff: Hpff, folder: Path) -> None:
    for number in (1, 2):
        answer = hpff("train", "tiny.yaml", f"seed={number}")
        assert answer.code == 0
        assert answer.out.startswith(f"runs/tiny-{number}: finished, test error ")
    again = hpff("train", "tiny.yaml", "seed=2", "--resume")
    assert again.code == 0
    assert again.out.startswith("runs/tiny-2: was finished before, test error ")


def test_train_prints_a_line_an_epoch_where_there_is_no_terminal(hpff: Hpff) -> None:
    lines = hpff("train", "tiny.yaml", "--out", "run").err.splitlines()
    number = r"\d+(\.\d+)?"
    assert lines[0] == "run"
    for epoch, line in enumerate(lines[1:], 1):
        assert re.fullmatch(
            rf"epoch {epoch}/2: loss {number}, error {number} %, {number} images/s, "
            rf"peak {number} MiB, \d+:\d\d left",
            line,
        )
    assert len(lines) == 3


def test_train_shows_bars_on_a_terminal(hpff: Hpff, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    shown = hpff("train", "tiny.yaml", "--out", "run").err
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    last = plain.strip().splitlines()[-1]
    for words in ("epoch 2/2", "loss ", "error ", "images/s", "peak ", "0:00:00 left"):
        assert words in last


def test_train_as_json(hpff: Hpff, folder: Path) -> None:
    report = json.loads(hpff("train", "tiny.yaml", "--out", "run", "--json").out)
    assert report.pop("run") == "run"
    assert report == json.loads((folder / "run" / "report.json").read_text())
    assert report["machine"]["torch"]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_compare_keeps_finished_runs_and_goes_on_with_others(hpff: Hpff, folder: Path) -> None:
    arguments = ["compare", "tiny.yaml", "--methods", "bp,dgl+hpff", "--out", "cmp"]
    answer = hpff(*arguments, "--seeds", "0,1")
    assert answer.code == 0, answer.err
    for words in ("bp", "dgl+hpff", "±", "peak memory", "cmp: every run"):
        assert words in answer.out
    finished = contents(folder / "cmp" / "bp" / "seed-1")
    (folder / "cmp" / "dgl+hpff" / "seed-1" / "report.json").unlink()
    result = json.loads((folder / "cmp" / "results.json").read_text())
    again = hpff(*arguments, "--seeds", "0,1", "--resume", "--json")
    assert contents(folder / "cmp" / "bp" / "seed-1") == finished
    assert json.loads(again.out) == result
    assert "dgl+hpff seed 1: cmp/dgl+hpff/seed-1, going on after epoch 2" in again.err
    assert "bp seed 0" not in again.err


def test_without_a_command_it_says_what_to_do_first(hpff: Hpff) -> None:
    answer = hpff()
    assert answer.code == 0
    assert "hpff compare demo" in answer.out
    assert max(map(len, answer.out.splitlines())) <= 80
    for group in ("list", "recipe"):
        answer = hpff(group)
        assert answer.code == 0
        assert answer.out.startswith(f"Usage: hpff {group} [OPTIONS] COMMAND [ARGS]...")
    for name in re.findall(r"  hpff (\w+)", hpff().out):
        assert hpff(name, "--help").code == 0


def test_compare_goes_on_after_a_run_that_diverges(hpff: Hpff, folder: Path) -> None:
    """It is named each time, and the others are trained, shown and kept."""
    arguments = ["compare", "tiny.yaml", "--out", "cmp", "cascade_weight=1e30", "--seeds", "0,1"]
    for resume in ([], ["--resume"]):
        answer = hpff(*arguments, "--methods", "dgl+hpff,dgl", *resume)
        assert answer.code == 2
        faults = [line for line in answer.err.splitlines() if line.startswith("hpff: ")]
        assert [line.partition(": the ")[0] for line in faults] == [
            "hpff: dgl+hpff seed 0",
            "hpff: dgl+hpff seed 1",
        ]
        assert all("is not a finite number" in line for line in faults)
        result = json.loads((folder / "cmp" / "results.json").read_text())
        assert [row["method"] for row in result["rows"]] == ["dgl"]
        assert [len(row["errors_percent"]) for row in result["rows"]] == [2]
        assert len(result["failed"]) == 2
        assert "Failed: dgl+hpff seed 0: the loss" in (folder / "cmp" / "results.md").read_text()
    alone = hpff("compare", "tiny.yaml", "--methods", "bp", "optimizer.lr=1e30", "--out", "none")
    assert alone.code == 2
    assert "bp seed 0: the loss" in alone.err
    assert not (folder / "none" / "results.json").exists()


def test_compare_goes_on_after_a_run_that_finds_no_memory(
    hpff: Hpff, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known before, or met in the middle: a line for each such run, and the others are there."""
    real = following.train_epoch

    def train_epoch(parts: Parts, *arguments: Any) -> Any:
        if parts.recipe.local.label() == "dgl":
            torch.empty(2**60, dtype=torch.uint8)
        return real(parts, *arguments)

    def rehearse(recipe: Recipe, **_: Any) -> int:
        return 2**40 if recipe.local.is_backprop else 1

    monkeypatch.setattr(following, "train_epoch", train_epoch)
    monkeypatch.setattr(memory_check, "rehearse", rehearse)
    monkeypatch.setattr(memory_check, "_known_steps", {})
    monkeypatch.setattr(memory_check, "machine_memory", lambda _: 2**20)
    answer = hpff("compare", "tiny.yaml", "--methods", "bp,dgl,dgl+hpff", "--out", "cmp")
    assert answer.code == 2
    first, second = [line for line in answer.err.splitlines() if line.startswith("hpff: ")]
    planned = "hpff: bp seed 0: cmp/bp/seed-0: a training step takes 1,024.0 GiB, but this machine"
    assert first.startswith(planned)
    assert second.startswith("hpff: dgl seed 0: cmp/dgl/seed-0: out of memory; try a smaller")
    result = json.loads((folder / "cmp" / "results.json").read_text())
    assert [row["method"] for row in result["rows"]] == ["dgl+hpff"]
    assert len(result["failed"]) == 2
    assert not (folder / "cmp" / "bp").exists()


@posix_only
def test_nothing_is_left_of_what_no_machine_holds(hpff: Hpff, folder: Path) -> None:
    for command, faults in (("train", 1), ("compare", 3)):
        answer = hpff(command, "tiny.yaml", "model.width=65536", "--out", "run")
        assert answer.code == 2
        lines = answer.err.splitlines()
        assert len(lines) == faults
        assert all("run" in line and "a training step takes" in line for line in lines)
        assert list(folder.iterdir()) == [folder / "tiny.yaml"]


def test_compare_reports_ratios_to_backprop(hpff: Hpff, folder: Path) -> None:
    hpff("compare", "tiny.yaml", "--methods", "bp,dgl+cl", "--seeds", "0,1", "--out", "cmp")
    result = json.loads((folder / "cmp" / "results.json").read_text())
    base, other = result["rows"]
    assert base["peak_memory_to_bp"] == base["step_seconds_to_bp"] == 1
    ratio = other["peak_memory_bytes"] / base["peak_memory_bytes"]
    assert other["peak_memory_to_bp"] == pytest.approx(ratio)
    report = json.loads((folder / "cmp" / "dgl+cl" / "seed-1" / "report.json").read_text())
    assert other["errors_percent"][1] == report["test_error_percent"]
    assert other["test_error_percent"] == pytest.approx(sum(other["errors_percent"]) / 2)
    table = (folder / "cmp" / "results.md").read_text()
    assert (
        f"| dgl+cl | {other['test_error_percent']:.2f} ± {other['spread_percent']:.2f} |" in table
    )
    assert f"| {ratio:.2f} |" in table


def test_compare_without_backprop_has_no_ratios(hpff: Hpff, folder: Path) -> None:
    assert hpff("compare", "tiny.yaml", "--methods", "dgl", "--out", "cmp").code == 0
    (row,) = json.loads((folder / "cmp" / "results.json").read_text())["rows"]
    assert row["peak_memory_to_bp"] is None
    assert row["spread_percent"] is None


@posix_only
def test_control_c_is_one_line_and_the_run_goes_on(
    hpff: Hpff, folder: Path, start_process: Callable[..., Any]
) -> None:
    process = start_process("train", "tiny.yaml", "epochs=1000", "--out", "run")
    deadline = time.monotonic() + 300
    while not (folder / "run" / "checkpoint.pt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    assert not (folder / "run" / ".hpff.lock").exists()


@pytest.mark.parametrize("wanted", [False, True])
def test_a_fault_of_our_own_is_one_line_and_its_traceback_on_demand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wanted: bool
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise LookupError("one\ntwo")

    monkeypatch.setattr("hpff.recipes.files.names", broken)
    monkeypatch.setenv("HPFF_TRACEBACK", "1" if wanted else "")
    assert main(["list", "recipes"]) == 1
    message = capsys.readouterr().err
    assert message.splitlines()[-1].startswith("hpff: internal error: LookupError: one two; ")
    assert ("Traceback" in message) == wanted
    assert wanted or len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["list", "recipes"], "interrupted"),
        (["train", "demo"], "interrupted; the same command starts anew"),
        (["compare", "demo"], "interrupted; the same command starts anew"),
        (
            ["reproduce", "table3"],
            "interrupted; the same command goes on: runs that are finished are kept",
        ),
    ],
)
def test_an_interrupt_is_one_line(
    command: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hpff.recipes.files.names", interrupted)
    monkeypatch.setattr("hpff.recipes.files.load", interrupted)
    monkeypatch.setattr("hpff.experiments.paper_tables.load", interrupted)
    assert main(command) == 130
    assert capsys.readouterr().err == f"hpff: {words}\n"


def test_no_memory_left_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9")):

        def fails(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr("hpff.recipes.files.names", fails)
        assert main(["list", "recipes"]) == 2
        assert capsys.readouterr().err.startswith("hpff: out of memory; try a smaller batch")
