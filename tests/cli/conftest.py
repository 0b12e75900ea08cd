from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cli.forked import Forked
from cli.tiny_table import ROWS, TABLE
from PIL import Image

from hpff.cli import main

TINY = """\
# Two steps an epoch.
model: {name: resnet20, width: 4}
data: digits
method: dgl
modules: 3
cascade: 2
patches: 2
epochs: 2
batch_size: 64
subset: 128
optimizer: {lr: 0.1}
device: cpu
"""


@dataclass(frozen=True)
class Answer:
    """What a command gave back."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty folder that holds `tiny.yaml`, on one thread."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(before)


@pytest.fixture
def hpff(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Return the command line, run in this process."""

    def run(*arguments: str) -> Answer:
        capsys.readouterr()
        code = main(arguments)
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return run


def command(*arguments: str) -> list[str]:
    """Return the command line as a process of its own."""
    return [sys.executable, "-m", "hpff.cli", *arguments]


def environment() -> dict[str, str]:
    """One thread, and the sources under test."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def hpff_process() -> Callable[..., Answer]:
    """Return the command line, run as a process from its first import on."""

    def run(*arguments: str) -> Answer:
        done = subprocess.run(
            command(*arguments), capture_output=True, text=True, env=environment(), check=False
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def start_process() -> Iterator[Callable[..., Forked]]:
    """Return a starter of the command line in the background; what still runs is killed."""
    started = []

    def start(*arguments: str, before: Callable[[], None] | None = None) -> Forked:
        started.append(Forked(arguments, environment(), before))
        return started[-1]

    yield start
    for process in started:
        process.close()


@pytest.fixture
def hpff_fork(start_process: Callable[..., Forked]) -> Callable[..., Answer]:
    """Return the command line, run in a process of its own."""

    def run(*arguments: str, before: Callable[[], None] | None = None) -> Answer:
        process = start_process(*arguments, before=before)
        code = process.wait()
        assert code is not None
        return Answer(code, *process.said())

    return run


def limit_file_size(limit: int = 40_000) -> None:
    """Let the operating system refuse to let a file grow, as where a disk is full."""
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def png(height: int = 8, width: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (10, 20, 30)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def write_parquet() -> Callable[..., None]:
    """Return a writer of images of one size and labels in the Hugging Face schema."""

    def write(path: Path, labels: Sequence[int], sizes: Sequence[int] = (8,)) -> None:
        sizes = [*sizes, *[sizes[-1]] * (len(labels) - len(sizes))]
        column = [{"bytes": png(size, size), "path": None} for size in sizes]
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"img": column, "label": list(labels)}), path)

    return write


@pytest.fixture
def parquet(folder: Path, write_parquet: Callable[..., None]) -> Path:
    """Return a folder with a sound training and test split of ten classes."""
    for split in ("train", "test"):
        write_parquet(folder / "data" / f"{split}.parquet", [*range(10)] * 13)
    return folder / "data"


@pytest.fixture
def table(folder: Path) -> Path:
    """Write a table of three tiny runs, and their recipes, into a folder of their own."""
    (folder / "paper").mkdir()
    (folder / "tiny.yaml").rename(folder / "paper" / "tiny.yaml")
    for name, text in ROWS.items():
        (folder / "paper" / f"{name}.yaml").write_text(text)
    (folder / "paper" / "table.yaml").write_text(TABLE)
    return folder / "paper" / "table.yaml"
