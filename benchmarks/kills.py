"""kill -9 at random moments of train, compare and export, then a flipped bit: nothing is lost.

After each kill the same command goes on to the end, and the weights are those of a run that nobody
killed, bit by bit; nothing of the killed process is left behind. Then 64 bytes in the middle of one
of the files that are read back are flipped: `--resume`, `evaluate` and `export` each refuse it in
one line that names the file, or do not read it and give what they gave before.

    python benchmarks/kills.py [KILLS]      # 20; about 15 minutes on two cores
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

RECIPE = """\
model: {name: resnet20, width: 8}
data: digits
method: dgl
modules: 3
cascade: 2
patches: 2
epochs: 6
batch_size: 64
subset: 256
optimizer: {lr: 0.1}
device: cpu
threads: 1
"""
WEIGHTS = "model.safetensors"
READ_BACK = ("checkpoint.pt", WEIGHTS, "report.json", "recipe.yaml", "metrics.jsonl", "metrics.csv")


@dataclasses.dataclass(frozen=True)
class Case:
    """A command that is killed, how it goes on, and the run directories that it leaves."""

    name: str
    command: tuple[str, ...]
    again: tuple[str, ...]
    runs: tuple[str, ...]


CASES = (
    Case(
        "train",
        ("train", "recipe.yaml", "--out", "out"),
        ("train", "recipe.yaml", "--out", "out", "--resume"),
        ("out",),
    ),
    Case(
        "compare",
        ("compare", "recipe.yaml", "--methods", "bp,dgl+hpff", "--out", "out"),
        ("compare", "recipe.yaml", "--methods", "bp,dgl+hpff", "--out", "out", "--resume"),
        ("out/bp/seed-0", "out/dgl+hpff/seed-0"),
    ),
    Case("export", ("export", "run", "out"), ("export", "run", "out"), ("out",)),
)


class Trial:
    """Kills and flips, in copies of a folder where every command went to its end once."""

    def __init__(self, home: Path, seed: int) -> None:
        self.home = home
        self.random = random.Random(seed)
        self.seconds: dict[str, float] = {}

    def prepare(self) -> None:
        """Run every command once without a kill, and note how long each took."""
        run = self.home / "unkilled"
        run.mkdir()
        (run / "recipe.yaml").write_text(RECIPE)
        for case in (CASES[0], CASES[1], CASES[2]):
            began = time.monotonic()
            done = hpff(case.command, run)
            assert done.returncode == 0, done.stderr
            self.seconds[case.name] = time.monotonic() - began
            (run / "out").rename(run / case.name)
            if case.name == "train":
                shutil.copytree(run / "train", run / "run")

    def kill(self, case: Case, number: int) -> str:
        """Kill once, go on to the end, compare, flip; what happened, in a line."""
        folder = self.home / f"{number}-{case.name}"
        folder.mkdir()
        (folder / "recipe.yaml").write_text(RECIPE)
        shutil.copytree(self.home / "unkilled" / "run", folder / "run")
        moment = self._kill_once(case, folder)
        self._go_on(case, folder)
        self._compare(case, folder)
        return f"{case.name} killed after {moment:.1f} s: same bits; {self._flip(case, folder)}"

    def _kill_once(self, case: Case, folder: Path) -> float:
        process = subprocess.Popen(
            arguments(case.command),
            cwd=folder,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # Most of an export's time is imports, so late kills are the interesting ones.
        earliest = 0.7 if case.name == "export" else 0.2
        moment = self.random.uniform(earliest, 1.0) * self.seconds[case.name]
        time.sleep(moment)
        process.kill()
        process.wait()
        return moment

    def _go_on(self, case: Case, folder: Path) -> None:
        out = folder / "out"
        if case.name == "export":
            if out.exists():  # It was done, whole, before the kill.
                return
            done = hpff(case.command, folder)
        else:
            begun = out / "recipe.yaml" if case.name == "train" else out / "bp"
            done = hpff(case.again if begun.exists() else case.command, folder)
        assert done.returncode == 0, done.stderr

    def _compare(self, case: Case, folder: Path) -> None:
        for run in case.runs:
            killed = folder / run / WEIGHTS
            unkilled = self.home / "unkilled" / case.name / Path(run).relative_to("out") / WEIGHTS
            assert killed.read_bytes() == unkilled.read_bytes(), killed
        left = [path for path in folder.rglob(".*") if path.name.endswith((".tmp", ".lock"))]
        assert left == [], left

    def _flip(self, case: Case, folder: Path) -> str:
        run = folder / self.random.choice(case.runs)
        names = [name for name in READ_BACK if (run / name).exists()]
        file = run / self.random.choice(names)
        unfinished = file.name == "checkpoint.pt"
        if unfinished:
            (run / "report.json").unlink()
        before = self._outcomes(run, folder)
        content = bytearray(file.read_bytes())
        start = max(0, self.random.randrange(len(content)) - 64)
        for place in range(start, min(start + 64, len(content))):
            content[place] ^= 1 << self.random.randrange(8)
        file.write_bytes(content)
        after = self._outcomes(run, folder)
        refused = 0
        for command, (code, words) in after.items():
            if (code, words) != before[command]:
                assert code == 2, (command, words)
                assert len(words.splitlines()) == 1, words
                assert file.name in words or "recipe" in words, words
                refused += 1
        assert refused or file.name in ("metrics.csv", "metrics.jsonl"), (file, after)
        return f"64 bytes flipped in {file.name}: refused by {refused} of {len(after)} commands"

    def _outcomes(self, run: Path, folder: Path) -> dict[str, tuple[int, str]]:
        """Exit code, and what is said, of all that reads a run; in a copy, so that it stays."""
        outcomes = {}
        recipe = json.dumps(str(folder / "recipe.yaml"))[1:-1]
        for command in ("resume", "evaluate", "export"):
            copy = self.home / "copy"
            shutil.copytree(run, copy / "run")
            words = {
                "resume": ("train", recipe, "--out", "run", "--resume"),
                "evaluate": ("evaluate", "run"),
                "export": ("export", "run", "out"),
            }[command]
            if command == "resume" and (run / "config.json").exists():
                words = ("evaluate", "run", "--split", "train")  # An export is not resumed.
            elif command == "resume" and "compare" in folder.name:
                words = ("train", "run/recipe.yaml", "--out", "run", "--resume")
            done = hpff(words, copy)
            outcomes[command] = (done.returncode, done.stderr if done.returncode else "")
            shutil.rmtree(copy)
        return outcomes


def arguments(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "hpff.cli", *words]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def hpff(words: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments(words),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as home:
        trial = Trial(Path(home), seed)
        trial.prepare()
        for number in range(kills):
            print(f"{number + 1}: {trial.kill(CASES[number % len(CASES)], number)}", flush=True)


if __name__ == "__main__":
    main()
