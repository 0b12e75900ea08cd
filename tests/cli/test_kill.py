"""kill -9 at any moment, then --resume: the bits of a run that nobody killed."""

from __future__ import annotations

import functools
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.forked import Forked

from hpff.runs import checkpoint

EPOCHS = 8


def wait_for(condition: Callable[[], bool], process: Forked) -> None:
    deadline = time.monotonic() + 300
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def epochs_done(run: Path) -> int:
    """What the run directory promises; it must be whole whenever one looks."""
    path = run / "checkpoint.pt"
    return checkpoint.load(path).epoch if path.exists() else 0


def epochs_told(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else -1


@pytest.mark.long
def test_killed_and_resumed_until_done(
    folder: Path, start_process: Callable[..., Any], hpff_fork: Callable[..., Any]
) -> None:
    arguments = ["train", "tiny.yaml", f"epochs={EPOCHS}", "--out"]
    assert hpff_fork(*arguments, "whole").code == 0
    moments, run, done = random.Random(0), folder / "run", 0
    for more in (0, 2, 1):
        process = start_process(*arguments, "run", *(["--resume"] if run.exists() else []))
        wait_for(functools.partial(lambda told: epochs_told(run) >= told, done + more), process)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.wait()
        assert epochs_done(run) >= done + more
        done = epochs_done(run)
    final = hpff_fork(*arguments, "run", "--resume")
    assert final.code == 0, final.err
    whole = folder / "whole"
    weights = "model.safetensors"
    assert (run / weights).read_bytes() == (whole / weights).read_bytes()
    killed, unkilled = (checkpoint.load(path / "checkpoint.pt") for path in (run, whole))
    assert all(torch.equal(killed.learner[name], unkilled.learner[name]) for name in killed.learner)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [*range(1, EPOCHS + 1)]


@pytest.mark.long
def test_a_killed_comparison_goes_on(
    folder: Path, start_process: Callable[..., Any], hpff: Callable[..., Any]
) -> None:
    """Killed in its second run; then each file that is read back is damaged, and refused."""
    arguments = ["compare", "tiny.yaml", "--methods", "bp,dgl", "--out"]
    assert hpff(*arguments, "whole").code == 0
    process = start_process(*arguments, "cmp")
    run = folder / "cmp" / "dgl" / "seed-0"
    wait_for(lambda: epochs_told(run) >= 0, process)
    time.sleep(random.Random(1).uniform(0, 0.3))
    process.kill()
    process.wait()
    again = hpff(*arguments, "cmp", "--resume")
    assert again.code == 0, again.err
    for label in ("bp", "dgl"):
        killed, unkilled = (
            (folder / name / label / "seed-0" / "model.safetensors").read_bytes()
            for name in ("cmp", "whole")
        )
        assert killed == unkilled
    assert [path for path in folder.rglob(".*") if path.suffix in (".tmp", ".lock")] == []
    flips = random.Random(2)
    for name in ("report.json", "checkpoint.pt"):
        before = (run / name).read_bytes()
        damaged = bytearray(before)
        # JSON's digits: a blank may become another blank.
        place = before.index(b'"test_error_percent": ') + 23 if name == "report.json" else None
        damaged[flips.randrange(len(damaged)) if place is None else place] ^= 4
        (run / name).write_bytes(damaged)
        answer = hpff(*arguments, "cmp", "--resume")
        assert answer.code == 2
        last = answer.err.splitlines()[-1]
        assert f"cmp/dgl/seed-0/{name}: is " in last
        (run / name).write_bytes(before)
        if name == "report.json":
            (run / name).unlink()
    assert hpff(*arguments, "cmp", "--resume").code == 0
