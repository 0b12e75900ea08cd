"""Ctrl-C: one line that says how to go on, which does."""

from __future__ import annotations

import json
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from platforms import posix_only

from hpff.cli import main
from hpff.cli.leaving import LeftError, advice, interrupts_first, is_helper, resumable
from hpff.cli.signals import terminable
from hpff.errors import AgreedError

pytestmark = posix_only

EPOCHS = 24


def left(process: Any, begun: Path) -> str:
    """Press Ctrl-C once a file is there; what the command says last."""
    deadline = time.monotonic() + 120
    while not begun.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    out, err = process.said()
    assert out == ""
    assert "Traceback" not in err
    assert len(re.findall("^hpff: ", err, re.MULTILINE)) == 1
    return str(err.splitlines()[-1])


@pytest.mark.long
@pytest.mark.parametrize(
    ("given", "folder_of_run"),
    [
        (["train", "tiny.yaml"], "runs/tiny-1"),
        (["train", "tiny.yaml", "--out", "my run"], "my run"),
        (["compare", "tiny.yaml", "--methods", "bp"], "runs/compare-tiny-1/bp/seed-0"),
    ],
    ids=lambda value: " ".join(value)[:30],
)
def test_what_ctrl_c_says_goes_on(
    given: list[str],
    folder_of_run: str,
    folder: Path,
    start_process: Callable[..., Any],
    hpff: Callable[..., Any],
) -> None:
    run = folder / folder_of_run
    process = start_process(*given, f"epochs={EPOCHS}")
    said = left(process, run / "checkpoint.pt")
    begin = "hpff: interrupted; go on with: "
    assert said.startswith(begin)
    words = shlex.split(said.removeprefix(begin))
    assert words[: len(given) + 2] == ["hpff", *given, f"epochs={EPOCHS}"]
    assert words[-1] == "--resume"
    done = len((run / "metrics.jsonl").read_text().splitlines())
    assert done < EPOCHS
    answer = hpff(*words[1:])
    assert answer.code == 0, answer.err
    assert "going on after epoch" in answer.err
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [*range(1, EPOCHS + 1)]


def test_advice_names_a_folder_and_resume_once() -> None:
    here = LeftError(Path("runs/a b"))
    assert advice(["train", "x"], here).endswith("hpff train x --out 'runs/a b' --resume")
    given = ["train", "x", "--resume", "--out=o"]
    assert advice(given, here).endswith("hpff train x --resume --out=o")
    assert advice(["plan", "resnet20"]) == "; the same command starts anew"


def test_one_process_of_several_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_helper()
    monkeypatch.setenv("RANK", "0")
    assert not is_helper()
    monkeypatch.setenv("HPFF_STARTED_BY", "1")
    assert is_helper()
    monkeypatch.delenv("HPFF_STARTED_BY")
    monkeypatch.setenv("RANK", "1")
    assert is_helper()


def test_what_all_processes_of_a_run_raise_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AgreedError("all say so")

    monkeypatch.setattr("hpff.cli.plan.plan", refuse)
    for rank, started, said in (("0", True, 1), ("1", True, 0), ("1", False, 1)):
        monkeypatch.setenv("RANK", rank)
        if started:
            monkeypatch.setenv("HPFF_STARTED_BY", "1")
        else:
            monkeypatch.delenv("HPFF_STARTED_BY")
        assert main(["plan", "resnet20"]) == 2
        assert capsys.readouterr().err.count("hpff: all say so") == said


def broken_off_with_a_lock() -> None:
    lock = threading.Lock()
    try:
        raise KeyboardInterrupt
    finally:
        lock.release()


def test_an_error_that_an_interrupt_brought_about_is_the_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts_first():
        broken_off_with_a_lock()
    with pytest.raises(LeftError), resumable(Path("run"), lambda: True):
        broken_off_with_a_lock()
    with pytest.raises(RuntimeError), interrupts_first():
        threading.Lock().release()


def test_a_command_in_which_it_arises_was_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hpff.cli.plan.plan", lambda *_, **__: broken_off_with_a_lock())
    assert main(["plan", "resnet20"]) == 130
    assert capsys.readouterr().err == "hpff: interrupted; the same command starts anew\n"


class Dropping:
    """Gets a signal while it is destructed, where Python drops what is raised."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __del__(self) -> None:
        signal.raise_signal(self._number)
        time.sleep(0)


def go_on_after(dropping: Dropping, seconds: float = 30) -> None:
    del dropping
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.001)


@pytest.fixture
def heard() -> Iterator[None]:
    """SIGINT interrupts: a shell that starts tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_gets_through_a_destructor(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    with terminable() as ended_by:
        with pytest.raises(KeyboardInterrupt):
            go_on_after(Dropping(number))
        assert ended_by == ([signal.SIGTERM] if number == signal.SIGTERM else [])
    assert capsys.readouterr().err == ""


def test_other_errors_of_destructors_are_shown_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    class Faulty:
        def __del__(self) -> None:
            raise ValueError

    shown: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda fault: shown.append(fault.exc_type))
    before = sys.unraisablehook
    with terminable():
        Faulty()
    assert shown == [ValueError]
    assert sys.unraisablehook is before
