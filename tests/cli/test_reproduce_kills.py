"""`hpff reproduce` cut off at any moment gives the same table in the end."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.conftest import environment
from cli.tiny_table import ROWS, Hpff, errors
from platforms import posix_only

pytestmark = pytest.mark.usefixtures("table")


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
