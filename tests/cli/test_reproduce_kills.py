"""`hpff reproduce` cut off at any moment gives the same table in the end."""

from __future__ import annotations

import functools
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli.conftest import limit_file_size
from cli.tiny_table import ROWS, Hpff, errors
from platforms import posix_only

pytestmark = pytest.mark.usefixtures("table")

Start = Callable[..., Any]


@pytest.mark.long
@posix_only
def test_ten_kills_and_the_table_is_the_same(folder: Path, start_process: Start) -> None:
    """kill -9 at random moments, then finish."""
    assert run(start_process, "whole") == 0
    moments = random.Random(0)
    killed = 0
    for _ in range(10):
        more = moments.choice((0, 0, 0, 1))
        killed += run(start_process, "out", moments.uniform(0, 0.2), more) == -signal.SIGKILL
    assert killed > 5
    assert run(start_process, "out") == 0
    for name in ROWS:
        whole, out = (folder / top / name / "seed-0" for top in ("whole", "out"))
        for file in ("model.safetensors", "recipe.yaml"):
            assert (out / file).read_bytes() == (whole / file).read_bytes()
    assert errors(folder, "out") == errors(folder, "whole")
    assert all(len(values) == 1 for values in errors(folder, "out").values())


def run(start: Start, out: str, seconds: float | None = None, more: int = 0) -> int | None:
    """Start the command, kill it some seconds after `more` epochs if asked to; its status."""
    process = start("reproduce", "paper/table.yaml", "epochs=6", "--out", out)
    if seconds is not None:
        done = count_epochs(Path(out)) + more
        while count_epochs(Path(out)) < done and process.wait(0.002) is None:
            pass
        if process.wait(seconds) is None:
            process.kill()
    return process.wait()


def count_epochs(out: Path) -> int:
    files = out.glob("*/seed-0/metrics.jsonl") if out.exists() else []
    return sum(len(file.read_text().splitlines()) for file in files)


@pytest.mark.long
@posix_only
def test_a_disk_that_fills_and_is_emptied_again(folder: Path, hpff_fork: Hpff, hpff: Hpff) -> None:
    """The operating system refuses to let files grow; what then goes on gives the same table."""

    arguments = ("reproduce", "paper/table.yaml", "--rows", "tiny-bp,tiny-dgl", "--out")
    stopped = hpff_fork(*arguments, "out", before=functools.partial(limit_file_size, 20_000))
    assert stopped.code == 2
    faults = [line for line in stopped.err.splitlines() if line.startswith("hpff: ")]
    assert [line.partition(" (")[0] for line in faults] == [
        f"hpff: out/{row}/seed-0/checkpoint.pt: cannot write this file"
        for row in ("tiny-bp", "tiny-dgl")
    ]
    assert hpff(*arguments, "out").code == 0
    assert hpff(*arguments, "whole").code == 0
    assert errors(folder, "out") == errors(folder, "whole")
