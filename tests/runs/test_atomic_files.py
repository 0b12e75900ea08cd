"""Whole or untouched: at the worst moments to be killed, and beside what others planted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from platforms import posix_only

from hpff.errors import UserError
from hpff.runs.atomic_files import remove_leftovers, scratch_beside, write_atomically

pytestmark = posix_only

DIE = """\
import os, sys; from pathlib import Path; from hpff.runs import atomic_files as files
os.{moment} = lambda *_: os.kill(os.getpid(), 9)
files.write_atomically(Path(sys.argv[1]), b"new" * 1000)
"""
WORK = """\
import sys, time; from pathlib import Path; from hpff.runs.atomic_files import scratch_beside
with scratch_beside(Path(sys.argv[1])) as scratch:
    (scratch / Path(sys.argv[1]).name).write_text("half")
    print(scratch, flush=True); time.sleep(60)
"""


@pytest.mark.parametrize("moment", ["fsync", "replace", "rename"])
def test_a_killed_write_leaves_the_old_file_and_the_next_cleans_up(
    tmp_path: Path, moment: str
) -> None:
    """Die before the new content has reached the disk, and before it takes the name."""
    path = tmp_path / "file"
    write_atomically(path, b"old")
    command = [sys.executable, "-c", DIE.format(moment=moment), str(path)]
    code = subprocess.run(command, check=False).returncode
    if moment != "rename":  # Not called here, but on other versions of Python.
        assert code == -9
        assert path.read_bytes() == b"old"
        assert len(list(tmp_path.iterdir())) == 2
    write_atomically(path, b"newer")
    assert path.read_bytes() == b"newer"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Return a live process that is about to write `tmp_path / "file"`."""
    command = [sys.executable, "-c", WORK, str(tmp_path / "file")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().endswith(".tmp\n")
        yield process
        process.kill()


def test_what_a_live_process_writes_is_left_alone_until_it_is_killed(
    tmp_path: Path, worker: subprocess.Popen[str]
) -> None:
    (scratch,) = tmp_path.iterdir()
    write_atomically(tmp_path / "file", b"ours")
    remove_leftovers(tmp_path)
    assert (scratch / "file").read_text() == "half"
    worker.kill()
    worker.wait()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_planted_links_are_not_followed(tmp_path: Path) -> None:
    """Whatever name a link has that someone may guess, and the target's name itself."""
    treasure = tmp_path / "treasure"
    treasure.write_text("mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in (f".file.{os.getpid()}.tmp", f".file.{'0' * 16}.tmp", "file"):
        (folder / name).symlink_to(treasure)
    write_atomically(folder / "file", b"new")
    assert treasure.read_text() == "mine"
    assert not (folder / "file").is_symlink()
    assert (folder / "file").read_bytes() == b"new"


def test_names_cannot_be_guessed_and_nobody_else_looks_in(tmp_path: Path) -> None:
    with scratch_beside(tmp_path / "file") as one, scratch_beside(tmp_path / "file") as other:
        assert one != other
        assert one.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_only_looks_like_ours_stays(tmp_path: Path) -> None:
    theirs = tmp_path / f".file.{'0' * 16}.tmp"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("years")
    write_atomically(tmp_path / "file", b"new")
    assert (theirs / "thesis.tex").read_text() == "years"


def test_the_longest_names_that_there_are(tmp_path: Path) -> None:
    for name in ("a" * 255, "ä" * 127):
        write_atomically(tmp_path / name, b"new")
        assert (tmp_path / name).read_bytes() == b"new"
    with pytest.raises(UserError, match="File name too long"):
        write_atomically(tmp_path / ("a" * 256), b"new")
    assert len(list(tmp_path.iterdir())) == 2
