"""Folders without permission, names too long, escape codes, closed pipes, SIGTERM."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli.conftest import Answer, command, environment
from cli.test_wrong_inputs import refused
from platforms import posix_only

from hpff.runs.atomic_files import remove_leftovers

pytestmark = posix_only

Hpff = Callable[..., Any]
LONG = "n" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", LONG],
        ["train", f"{LONG}.yaml"],
        ["train", "tiny.yaml", "--out", LONG],
        ["train", "tiny.yaml", "--out", f"{LONG}/run"],
        ["train", "tiny.yaml", "--out", LONG, "--resume"],
        ["train", "tiny.yaml", f"data=folder:{LONG}"],
        ["train", "tiny.yaml", f"data=parquet:{LONG}"],
        ["compare", "tiny.yaml", "--out", LONG],
        ["compare", "tiny.yaml", "--out", LONG, "--resume"],
        ["evaluate", LONG],
        ["export", LONG, "out"],
        ["recipe", "copy", "demo", f"{LONG}.yaml"],
        ["reproduce", LONG],
        ["reproduce", f"{LONG}.yaml"],
    ],
    ids=lambda arguments: " ".join(arguments)[:40],
)
def test_a_name_of_300_characters(hpff: Hpff, folder: Path, arguments: list[str]) -> None:
    message = refused(hpff, folder, *arguments)
    assert "nnnnn" in message
    assert "internal error" not in message


def test_an_export_to_a_name_of_300_characters(hpff: Hpff, folder: Path) -> None:
    assert hpff("train", "tiny.yaml", "--out", "run").code == 0
    message = refused(hpff, folder, "export", "run", LONG)
    assert "cannot write this folder (File name too long)" in message
    assert hpff("export", "run", "e" * 255).code == 0


def without_privileges() -> None:
    """Take from the super-user what passes over permissions, for the program that starts next."""
    if os.geteuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            if ctypes.CDLL(None).prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
                raise OSError


COMMANDS = """\
import contextlib, io, json, sys
from hpff.runs.atomic_files import remove_leftovers
from hpff.cli import main
answers = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        with contextlib.redirect_stderr(io.StringIO()) as err:
            code = main(arguments)
    answers.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(answers))
"""


@pytest.fixture
def unprivileged() -> Callable[[list[list[str]]], list[Answer]]:
    """Return what runs commands, one after the other, in a process that permissions bind."""

    def run(commands: list[list[str]]) -> list[Answer]:
        try:
            done = subprocess.run(
                [sys.executable, "-c", COMMANDS, json.dumps(commands)],
                capture_output=True,
                text=True,
                env=environment(),
                preexec_fn=without_privileges,
                check=False,
            )
        except subprocess.SubprocessError:
            pytest.skip("permissions do not bind this user")
        assert done.returncode == 0, done.stderr
        return [Answer(*answer) for answer in json.loads(done.stdout)]

    return run


def test_folders_without_permission(unprivileged: Any, folder: Path, hpff: Hpff) -> None:
    assert hpff("train", "tiny.yaml", "--out", "run").code == 0
    for name in ("closed", "locked"):
        (folder / name).mkdir()
    (folder / "closed").chmod(0o000)
    (folder / "locked").chmod(0o555)
    answers = unprivileged(
        [
            ["train", "tiny.yaml", "--out", "closed"],
            ["train", "tiny.yaml", "--out", "closed/run"],
            ["train", "tiny.yaml", "--out", "closed/run", "--resume"],
            ["train", "tiny.yaml", "--out", "locked/run"],
            ["train", "tiny.yaml", "data=folder:closed"],
            ["train", "tiny.yaml", "data=parquet:closed/x"],
            ["train", "closed/recipe.yaml"],
            ["compare", "tiny.yaml", "--out", "closed"],
            ["compare", "tiny.yaml", "--out", "locked/compare"],
            ["evaluate", "closed"],
            ["evaluate", "closed/run"],
            ["export", "run", "closed/out"],
            ["export", "run", "locked/out"],
            ["recipe", "copy", "demo", "locked/demo.yaml"],
        ]
    )
    for name in ("closed", "locked"):
        (folder / name).chmod(0o700)
    for answer in answers:
        assert answer.code == 2, answer.err
        assert re.fullmatch(r"(hpff: .*(closed|locked).*\n)+", answer.err), answer.err
        assert "internal error" not in answer.err


def test_resume_in_a_read_only_folder(unprivileged: Any, folder: Path, hpff: Hpff) -> None:
    """A finished run is read; one that lacks its end is not blamed on --out."""
    assert hpff("train", "tiny.yaml", "--out", "run").code == 0
    shutil.copytree(folder / "run", folder / "cut")
    (folder / "cut" / "report.json").unlink()
    resume = ["train", "tiny.yaml", "--resume", "--out"]
    for name in ("run", "cut"):
        (folder / name).chmod(0o555)
    again, evaluated, cut = unprivileged([[*resume, "run"], ["evaluate", "run"], [*resume, "cut"]])
    for name in ("run", "cut"):
        (folder / name).chmod(0o755)
    assert again.code == 0, again.err
    assert again.out.startswith("run: was finished before")
    assert evaluated.code == 0, evaluated.err
    assert cut.code == 2
    assert cut.err.startswith("hpff: cut: holds a run that cannot be written to (Permission denied")
    assert len(cut.err.splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    [
        '"a\\nhpff: all is well": 1',
        'data: "folder:x\\nhpff: all is well"',
        'data: "x\\e[2Jy"',
        'method: "dgl\\nhpff: all is well"',
        'model: "a\\u2028b"',
        'model: {name: resnet20, "width\\e[0m": 3}',
        'modules: ["a\\nb"]',
    ],
)
def test_values_cannot_write_lines_of_their_own(hpff: Hpff, folder: Path, text: str) -> None:
    recipe = (folder / "tiny.yaml").read_text()
    key = text.partition(":")[0]
    kept = [line for line in recipe.splitlines() if not line.startswith(f"{key}:")]
    (folder / "odd.yaml").write_text("\n".join([*kept, text]) + "\n")
    message = refused(hpff, folder, "train", "odd.yaml")
    assert "\x1b" not in message
    assert "\u2028" not in message
    assert not re.search(r"^hpff: all is well", message, re.MULTILINE)


def start(*arguments: str, **streams: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(*arguments), env=environment(), **streams)


def lose_the_reader() -> None:
    """As `2>&1 | head -1` does."""
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 2)


def fill_the_disk_of_the_log() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)


def start_without_stderr() -> None:
    """As `2>&-` does."""
    os.close(2)
    sys.stderr = None


@pytest.mark.parametrize(
    "before", [lose_the_reader, fill_the_disk_of_the_log, start_without_stderr]
)
def test_a_closed_stderr_does_not_end_a_training(
    hpff_fork: Hpff, folder: Path, before: Callable[[], None]
) -> None:
    answer = hpff_fork("train", "tiny.yaml", "--out", "run", before=before)
    assert answer.code == 0
    assert answer.out.startswith("run: finished, test error")
    assert (folder / "run" / "report.json").exists()


def test_a_closed_stdout_is_no_fault(folder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = start("recipe", "show", "demo", stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    _, err = process.communicate()
    assert (process.returncode, err) == (1, b"")


def test_sigterm_is_said_and_the_run_goes_on(folder: Path, start_process: Hpff) -> None:
    arguments = ["train", "tiny.yaml", "epochs=100000", "--out", "run"]
    process = start_process(*arguments)
    deadline = time.monotonic() + 300
    while not (folder / "run" / "checkpoint.pt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 128 + signal.SIGTERM
    out, err = process.said()
    again = "hpff train tiny.yaml epochs=100000 --out run --resume"
    assert err.splitlines()[-1] == f"hpff: terminated; go on with: {again}"
    assert out == ""
    assert not (folder / "run" / ".hpff.lock").exists()
    remove_leftovers(folder / "run")  # as the next write does, for a signal amid the last one
    assert [path for path in (folder / "run").iterdir() if path.suffix == ".tmp"] == []
