"""Runs on several processes of which some are killed, stopped, slowed or started wrongly.

    python benchmarks/kills_ranks.py [--kills 10] [--seed 0] [--write]   # about half an hour

A random rank is killed (SIGKILL) at random moments, so many times in a run: under torchrun
--max-restarts, which starts the ranks again by itself, and under `hpff train`, which says so and
goes on with --resume. The finished run must have the bytes of one that nobody disturbed: with
parallel=modules of a run in one process. Before that come faults that must end in one line, exit
code 2 and no process left, and a slow rank, which may cost nothing but time. With `--write` the
table goes to kills_ranks.md. Linux only: ranks are found in /proc.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hpff.runs import machine

RECIPE = """\
model: {name: resnet20, width: 4}
data: digits
method: dgl
modules: 3
cascade: 2
patches: 2
epochs: 12
batch_size: 64
subset: 256
optimizer: {lr: 0.1}
device: cpu
threads: 1
rank_timeout: 30.0
"""
MODULES = ("parallel=modules", "ranks=2")
DATA = ("parallel=data", "ranks=2", "sync_batch_norm=true")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ENDLESS = "epochs=100000"
FILE = Path(__file__).with_suffix(".md")


class Trial:
    """Runs in a folder of their own, and the moments at which they are disturbed."""

    def __init__(self, home: Path, kills: int, seed: int) -> None:
        self.home = home
        self.kills = kills
        self.random = random.Random(seed)
        (home / "recipe.yaml").write_text(RECIPE)

    def undisturbed(self, *settings: str) -> bytes:
        """The weights of a run to its end."""
        done = self.start(["-m", "hpff.cli", *self.train("calm", *settings)]).wait()
        assert done == 0, self.said()
        content = self.weights("calm")
        self.forget("calm")
        return content

    def killed_under_torchrun(self) -> str:
        expected = self.undisturbed(*DATA, "epochs=60")
        restarts = ("--max-restarts", str(self.kills), "-m", "hpff.cli")
        run = self.start([*TORCHRUN, *restarts, *self.train("run", *DATA, "epochs=60")])
        for _ in range(self.kills):
            self.kill_one(run)
        assert run.wait() == 0, self.said()
        assert self.weights("run") == expected
        self.forget("run")
        return f"{self.kills} kills; the same bytes"

    def killed_and_resumed(self) -> str:
        expected = self.undisturbed("epochs=60")
        killed, lines = 0, set()
        resume: tuple[str, ...] = ()
        while True:
            run = self.start(["-m", "hpff.cli", *self.train("run", *MODULES, "epochs=60"), *resume])
            if killed < self.kills:
                self.kill_one(run)
                killed += 1
            if run.wait() == 0:
                break
            assert run.returncode == 2, self.said()
            lines.add("was killed by signal 9" in self.said())
            resume = ("--resume",) if (self.home / "run" / "recipe.yaml").exists() else ()
        assert killed == self.kills, "the run was over before all kills"
        assert lines == {True}
        assert self.weights("run") == expected
        self.forget("run")
        return f"{killed} kills; the same bytes"

    def kill_one(self, run: subprocess.Popen[bytes]) -> None:
        """Kill a random rank some time after all of them have started."""
        ranks = self.ranks(run)
        time.sleep(self.random.uniform(0.0, 12.0))
        assert run.poll() is None, self.said()
        os.kill(self.random.choice(ranks), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while run.poll() is None and set(children(run.pid)) & set(ranks):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def stopped(self, *settings: str) -> str:
        """Stop a rank of an endless run."""
        run = self.start(["-m", "hpff.cli", *self.train("run", *settings, ENDLESS)])
        ranks = self.ranks(run, int(settings[1].partition("=")[2]))
        self.wait_for(run, "checkpoint.pt")
        rank = self.random.randrange(len(ranks))
        os.kill(ranks[rank], signal.SIGSTOP)
        began = time.monotonic()
        line = self.refused([run])
        assert f"rank {rank} is gone or was stopped" in line, line
        assert not any(alive(pid) for pid in ranks)
        self.forget("run")
        return f"exit code 2 after {time.monotonic() - began:.0f} s: {line}"

    def slow(self, *settings: str) -> str:
        """Stop a rank for a while, again and again."""
        expected = self.undisturbed(*(settings if "parallel=data" in settings else ()))
        run = self.start(["-m", "hpff.cli", *self.train("run", *settings)])
        ranks, pauses = self.ranks(run), 0
        while run.poll() is None:
            rank = self.random.choice(ranks)
            if alive(rank):
                os.kill(rank, signal.SIGSTOP)
                time.sleep(2)
                os.kill(rank, signal.SIGCONT)
                pauses += 1
            time.sleep(1)
        assert run.returncode == 0, self.said()
        assert self.weights("run") == expected
        self.forget("run")
        return f"{pauses} pauses of 2 s; the same bytes"

    def port_in_use(self) -> str:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            return "exit code 2: " + self.refused([self.start_rank(0, port, *MODULES)])

    def wrong_world_size(self) -> str:
        three = (*TORCHRUN[:-1], "3")
        run = self.start([*three, "-m", "hpff.cli", *self.train("run", *MODULES)])
        run.wait()
        assert "exitcode  : 2" in self.said(), self.said()
        return "exit code 2: " + self.own_lines()[0]

    def different_recipes(self) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        ranks = [self.start_rank(r, port, *DATA, f"seed={r}", name=f"rank{r}") for r in (0, 1)]
        return "exit code 2: " + self.refused(ranks)

    def refused(self, processes: Sequence[subprocess.Popen[bytes]]) -> str:
        """The one line that processes say before they end with code 2."""
        for process in processes:
            assert process.wait(timeout=200) == 2, self.said()
        lines = self.own_lines()
        assert len(set(lines)) == 1, lines
        return lines[0]

    def start(
        self, words: Sequence[str], name: str = "run", **more: str
    ) -> subprocess.Popen[bytes]:
        with self.log(name).open("wb") as log:
            return subprocess.Popen(
                [sys.executable, *words],
                cwd=self.home,
                env={**os.environ, "OMP_NUM_THREADS": "1", **more},
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def start_rank(
        self, rank: int, port: int, *settings: str, name: str = "run"
    ) -> subprocess.Popen[bytes]:
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        which = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
        words = ["-m", "hpff.cli", *self.train("run", *settings)]
        return self.start(words, name, **where, **which)

    def train(self, out: str, *settings: str) -> tuple[str, ...]:
        return "train", "recipe.yaml", *settings, "--out", out

    def ranks(self, run: subprocess.Popen[bytes], count: int = 2) -> list[int]:
        """The processes of a command's ranks, once all are there."""
        while len(found := children(run.pid)) != count:
            assert run.poll() is None, self.said()
            time.sleep(0.05)
        return found

    def wait_for(self, run: subprocess.Popen[bytes], file: str) -> None:
        while not (self.home / "run" / file).exists():
            assert run.poll() is None, self.said()
            time.sleep(0.05)

    def log(self, name: str) -> Path:
        return self.home / f"{name}.log"

    def said(self, name: str = "run") -> str:
        return self.log(name).read_text(errors="replace")

    def own_lines(self) -> list[str]:
        logs = sorted(self.home.glob("*.log"))
        lines = [line for log in logs for line in log.read_text(errors="replace").splitlines()]
        return [line for line in lines if line.startswith("hpff: ")]

    def weights(self, run: str) -> bytes:
        return (self.home / run / "model.safetensors").read_bytes()

    def forget(self, run: str) -> None:
        (self.home / run).rename(self.home / f"{run}-{time.monotonic_ns()}")


def children(parent: int) -> list[int]:
    listing = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(pid) for pid in listing.read_text().split()] if listing.exists() else []


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as home:
        trial = Trial(Path(home), given.kills, given.seed)
        three = ("parallel=modules", "ranks=3")
        trials: dict[str, Callable[[], str]] = {
            "a port in use": trial.port_in_use,
            "3 processes for ranks=2, under torchrun": trial.wrong_world_size,
            "ranks with different recipes": trial.different_recipes,
            "a rank of 3 is stopped, parallel=modules": lambda: trial.stopped(*three),
            "a rank of 2 is stopped, parallel=data": lambda: trial.stopped(*DATA),
            "a slow rank, parallel=modules": lambda: trial.slow(*MODULES),
            "a slow rank, parallel=data": lambda: trial.slow(*DATA),
            "random ranks killed, --resume, parallel=modules": trial.killed_and_resumed,
            "random ranks killed under torchrun, parallel=data": trial.killed_under_torchrun,
        }
        for name, run in trials.items():
            for log in Path(home).glob("*.log"):
                log.unlink()
            rows.append(f"| {name} | {run()} |")
            print(rows[-1], flush=True)
    table = "\n".join(["| what happens | what comes of it |", "| --- | --- |", *rows])
    if given.write:
        how = f"{given.kills} kills, seed {given.seed}. {machine.describe()}"
        FILE.write_text(f"{__doc__}\n\n{how}\n\n{table}\n")


if __name__ == "__main__":
    main()
