"""Help with examples that work, tables of 80 columns, JSON, completion, suggestions."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from cli.conftest import environment
from cli.test_wrong_inputs import refused

from hpff import data, methods, models
from hpff.cli import completion, tables
from hpff.cli.app import app
from hpff.experiments import paper_tables
from hpff.recipes import files as recipe_files
from hpff.torch_support import torchvision_import

Hpff = Callable[..., Any]


def every_command() -> Iterator[tuple[str, ...]]:
    """The words of each command, the root's and the groups' too."""

    def below(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield words
        for name, each in getattr(command, "commands", {}).items():
            yield from below(each, (*words, name))

    yield from below(typer.main.get_command(app), ())


COMMANDS = [*every_command()]
# What makes an example small enough for a test. Not run: analyze, which has tests of its own.
SMALLER: Mapping[str, list[str]] = {
    "train": ["epochs=2", "subset=128"],
    "compare": ["epochs=2", "subset=128", "--methods", "bp"],
    "plan": ["--image", "3,8,8", "--batch", "4", "--methods", "dgl"],
    "fit": ["--image", "3,8,8", "--batch", "4"],
    "bench": ["--image", "3,8,8", "--batch", "4", "--rounds", "2"],
}


def examples(hpff: Hpff, words: tuple[str, ...]) -> list[str]:
    """The examples at the end of a command's help."""
    text = hpff(*words, "--help").out
    _, found, end = text.rpartition("Examples:\n" if "  Examples:\n" in text else "Example:\n")
    assert found, text
    lines = [line.strip() for line in end.splitlines()]
    assert all(line.startswith("hpff ") for line in lines)
    return lines


@pytest.mark.long
def test_every_help_ends_with_examples_that_run(
    hpff: Hpff, hpff_process: Hpff, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their order: later ones take the runs of earlier ones."""
    monkeypatch.setenv("COLUMNS", "80")
    for words in COMMANDS:
        for line in examples(hpff, words):
            given = shlex.split(line)[1:]
            assert tuple(given[: len(words)]) == words
            if words in ((), ("analyze",)):
                continue
            kept = SMALLER.get(words[0], []) if words else []
            run = hpff_process if "--parallel" in given else hpff  # its processes print themselves
            answer = run(*given, *kept)
            assert answer.code == 0, (line, answer.err)
            assert answer.out


def test_the_example_of_analyze_is_understood(hpff: Hpff) -> None:
    (line,) = examples(hpff, ("analyze",))
    answer = hpff(*shlex.split(line)[1:])
    assert answer.code == 2
    assert answer.err.startswith("hpff: runs/first: holds no run")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_fits(words: tuple[str, ...], hpff: Hpff, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = hpff(*words, "--help").out
    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in text.partition("Commands:")[2]


WIDE = ["--image", "3,8,8", "--batch", "4", "--methods", "dgl", "--modules", "3"]


@pytest.mark.parametrize(
    "command",
    [
        *(["list", what] for what in ("models", "methods", "presets", "recipes", "tables")),
        ["list", "datasets"],
        ["plan", "resnet20", *WIDE, "--recompute", "blocks", "--budget", "10MB"],
        ["plan", "resnet20", *WIDE, "--ranks", "3"],
        ["fit", "resnet20", "--image", "3,8,8", "--batch", "4", "--budget", "1MB"],
        ["bench", "resnet20", *WIDE, "--rounds", "2"],
        ["compare", "tiny.yaml", "--methods", "bp,dgl+cl+pff", "--seeds", "0,1"],
        *(["reproduce", table, "--dry-run"] for table in ("cifar10", "imagenet", "ablation")),
        ["evaluate", "run"],
    ],
    ids=" ".join,
)
def test_tables_fit_80_columns(
    command: list[str], hpff: Hpff, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command[0] == "evaluate":
        assert hpff("train", "tiny.yaml", "--out", "run").code == 0
    monkeypatch.setenv("COLUMNS", "80")
    answer = hpff(*command)
    assert answer.code == 0, answer.err
    assert "───" in answer.out
    assert max(map(len, answer.out.splitlines())) <= 80


def printed(header: list[str], row: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    tables.show_table(header, [row])
    return [line.split() for line in capsys.readouterr().out.strip().splitlines()]  # type: ignore[misc]


def test_a_wide_table_folds_titles_and_breaks_no_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    header = ["method", "of bp", "activa\u00adtions", "largest batch"]
    row = ["dgl+hpff recompute=blocks", "0.123", "12345.67", "1234567"]
    monkeypatch.setenv("COLUMNS", "80")
    assert printed(header, row, capsys)[0] == [
        "method",
        "of",
        "bp",
        "activations",
        "largest",
        "batch",
    ]
    monkeypatch.setenv("COLUMNS", "52")
    assert printed(header, row, capsys)[-1] == [*row[0].split(), *row[1:]]
    monkeypatch.setenv("COLUMNS", "40")
    lines = printed(header, row, capsys)
    assert lines[-3:] == [["dgl+hpff", *row[1:]], ["recompute="], ["blocks"]]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_that_prints_has_json(words: tuple[str, ...], hpff: Hpff) -> None:
    text = hpff(*words, "--help").out
    assert ("Commands:" in text) or "--json" in text


def test_json_of_small_commands(hpff: Hpff) -> None:
    assert hpff("train", "tiny.yaml", "--out", "run").code == 0
    assert json.loads(hpff("export", "run", "hub", "--json").out)["folder"] == "hub"
    assert json.loads(hpff("recipe", "check", "tiny.yaml", "--json").out)["faults"] == []
    copied = json.loads(hpff("recipe", "copy", "demo", "mine.yaml", "--json").out)
    assert copied == {"recipe": "mine.yaml", "from": "demo"}


def complete(*words: str) -> list[str]:
    """What a shell gets for a line, and that no torch was needed."""
    program = (
        "import sys\nfrom hpff.cli import main\n"
        "try:\n    main([])\nfinally:\n    assert 'torch' not in sys.modules"
    )
    line = {"COMP_WORDS": shlex.join(["hpff", *words]), "COMP_CWORD": str(len(words))}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment(), **line, "_HPFF_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "AssertionError" not in done.stderr
    return done.stdout.splitlines()


def test_completion_in_a_shell(folder: Path) -> None:
    (folder / "mine.py").write_text("raise SystemExit('was run')\n")
    assert complete("comp") == ["compare"]
    assert complete("train", "dem") == ["demo"]
    assert complete("fit", "resnet20", "--bud") == ["--budget"]
    found = complete("compare", "demo", "--import", "mine.py", "--methods", "bp,dgl+h")
    assert found == ["bp,dgl+hilo", "bp,dgl+hpff"]


def test_completion_knows_what_commands_know() -> None:
    assert sorted(completion.recipe_names()) == sorted(name for name, _ in recipe_files.names())
    assert sorted(completion.table_names()) == sorted(name for name, _ in paper_tables.names())
    assert list(completion.method_names()) == [name for name, _ in methods.names()]
    named = {name for name, _ in data.names()}
    assert {name for name in named if ":" not in name} == set(completion.DATASETS)
    assert {name.partition(":")[0] for name in named if ":" in name} == {
        name[:-1] for name in completion.DATA if name.endswith(":")
    }
    own = {name for name, _ in models.names() if "NAME" not in name}
    assert own == set(completion.OWN_MODELS)


def test_completion_knows_the_models_of_libraries() -> None:
    timm = set(torchvision_import.timm().list_models())
    assert len(timm & set(completion.built_by("timm"))) > 0.95 * len(timm)
    ours = completion.built_by("torchvision")
    assert {"resnet101", "vit_b_16", "deeplabv3_resnet101"} <= set(ours)
    assert {models.resolve(f"torchvision/{name}")[0] for name in ours} == {"torchvision"}


@pytest.mark.parametrize(
    ("incomplete", "completer", "found"),
    [
        ("timm/vit_tiny_patch16_22", completion.models, ["timm/vit_tiny_patch16_224"]),
        ("ti", completion.models, ["timm/"]),
        ("bp,dg", completion.methods, ["bp,dgl"]),
        ("bp,b", completion.labels, ["bp,balanced"]),
        ("dgl+cl", completion.labels, ["dgl+cl", "dgl+cl+pff"]),
        ("imagenet-", completion.tables, ["imagenet-k8"]),
        ("cifar", completion.data, ["cifar10", "cifar100"]),
        ("man", completion.method, ["man"]),
        ("blocks,", completion.some_of("blocks", "once"), ["blocks,once"]),
    ],
)
def test_completion_of_a_word(
    incomplete: str, completer: completion.Completer, found: list[str]
) -> None:
    assert completer(incomplete) == found


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["trian", "demo"], "Did you mean 'train'"),
        (["list", "modls"], "'models'"),
        (["train", "demo", "--resum"], "--resume"),
        (["train", "dmeo"], "did you mean demo?"),
        (["plan", "resnet11"], "did you mean resnet110?"),
        (["plan", "timm/resnt18"], "did you mean timm/resnet18?"),
        (["plan", "resnet20", "--methods", "dlg"], "did you mean dgl?"),
        (["plan", "resnet20", "--precision", "fp23"], "did you mean fp32?"),
        (["plan", "resnet20", "--optimizer", "adm"], "did you mean adam?"),
        (["plan", "resnet20", "--balance", "block"], "did you mean blocks?"),
        (["plan", "resnet20", "--recompute", "block"], "did you mean blocks?"),
        (["bench", "resnet20", "--device", "cude"], "did you mean cuda?"),
        (["train", "tiny.yaml", "data=cifr10"], "did you mean cifar10?"),
        (["train", "tiny.yaml", "optimizer.lrr=1"], "did you mean lr?"),
        (["train", "tiny.yaml", "precision=fp23"], "did you mean fp32?"),
        (["reproduce", "cifar1"], "did you mean cifar10?"),
        (["reproduce", "cifar10", "--rows", "resnet32-b"], "did you mean resnet32-bp?"),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_a_near_miss_is_named(arguments: list[str], near: str, hpff: Hpff, folder: Path) -> None:
    assert near in refused(hpff, folder, *arguments)


def test_a_near_miss_of_a_run_is_named(hpff: Hpff, folder: Path) -> None:
    assert hpff("train", "tiny.yaml", "--out", "run").code == 0
    for words in (["--split", "tets"], ["--dataset", "digit"], ["--match", "nane"]):
        assert "did you mean" in refused(hpff, folder, "evaluate", "run", *words)


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("command", [["plan", "resnet20", *WIDE], ["evaluate", "run"]])
def test_long_work_shows_the_time_left(hpff: Hpff, folder: Path, command: list[str]) -> None:
    if command[0] == "evaluate":
        assert hpff("train", "tiny.yaml", "--out", "run").code == 0
    # A test of few batches is over before there is anything to foretell.
    time = rb"\d:\d\d:\d\d" if command[0] == "plan" else b"testing"
    assert re.search(time + rb"[^\r\n]*left", shown_on_a_terminal(folder, command))


def shown_on_a_terminal(folder: Path, command: list[str]) -> bytes:
    """What a command writes to its stderr, that being a terminal."""
    import pty

    leading, following = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "hpff.cli", *command],
        cwd=folder,
        env={**environment(), "TERM": "xterm", "COLUMNS": "80"},
        stdout=subprocess.DEVNULL,
        stderr=following,
    )
    os.close(following)
    shown = b""
    while True:
        try:
            some = os.read(leading, 4096)
        except OSError:  # as Linux says that the other side is closed
            break
        if not some:
            break
        shown += some
    os.close(leading)
    assert process.wait() == 0
    return shown
