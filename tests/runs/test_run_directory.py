from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpff.errors import UserError
from hpff.runs.run_directory import RunDirectory
from hpff.runs.run_paths import default_path

HOLD = (
    "import sys, time; from pathlib import Path\n"
    "from hpff.runs.run_directory import RunDirectory\n"
    "with RunDirectory(Path(sys.argv[1])).in_use():\n"
    "    print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Return a live process that holds the run directory `tmp_path / "run"`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_folder_in_use_is_refused_until_its_holder_is_killed(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    directory = RunDirectory(tmp_path / "run")
    with pytest.raises(UserError, match="is in use by another hpff process"), directory.in_use():
        pass
    holder.kill()
    holder.wait()
    with directory.in_use():
        pass


def test_an_unused_folder_leaves_no_trace(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "a" / "b").in_use():
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_other_things_is_refused_and_untouched(
    tmp_path: Path, make_recipe: Any
) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    directory = RunDirectory(tmp_path)
    with pytest.raises(UserError, match="is not empty"), directory.in_use():
        directory.check(make_recipe(), resume=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def leave_behind(folder: Path, name: str = "checkpoint.pt") -> None:
    """Leave what a process killed while it wrote a file leaves."""
    scratch = folder / f".{name}.{'0a' * 8}.tmp"
    scratch.mkdir()
    (scratch / "lock").touch()
    (scratch / name).write_bytes(b"half")


def test_what_a_killed_process_left_does_not_count(tmp_path: Path, make_recipe: Any) -> None:
    (tmp_path / ".hpff.lock").touch()
    leave_behind(tmp_path)
    directory = RunDirectory(tmp_path)
    with directory.in_use():
        directory.check(make_recipe(), resume=False)
    assert list(tmp_path.iterdir()) == []


THEIRS = (".lock", ".hpff.lock", ".x.tmp", ".checkpoint.pt.123.tmp", ".report.json.old.tmp")


@pytest.mark.parametrize("resume", [False, True])
def test_a_refused_folder_keeps_every_hidden_file(
    tmp_path: Path, make_recipe: Any, resume: bool
) -> None:
    for name in ("thesis.tex", *THEIRS):
        (tmp_path / name).write_text("mine")
    directory = RunDirectory(tmp_path)
    with pytest.raises(UserError), directory.in_use():
        directory.check(make_recipe(), resume=resume)
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.tex", *THEIRS}
    assert all(path.read_text() == "mine" for path in tmp_path.iterdir())


def test_only_our_own_leftovers_are_deleted(tmp_path: Path, make_recipe: Any) -> None:
    directory = RunDirectory(tmp_path)
    with directory.in_use():
        directory.write_recipe(make_recipe())
    for name in THEIRS:
        (tmp_path / name).touch()
    leave_behind(tmp_path)
    with directory.in_use():
        directory.check(make_recipe(), resume=True)
    kept = {*THEIRS, "recipe.yaml"} - {".hpff.lock"}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / ".hpff.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="cannot use this folder"), RunDirectory(tmp_path).in_use():
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("text", ["{}", "[]", "3", '{"epochs": "x"}', "[" * 100_000, "no"])
def test_a_damaged_report_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(UserError, match="is not a readable report, or it is damaged; delete"):
        RunDirectory(tmp_path).read_report()


def test_resume_needs_a_run_of_the_same_recipe(tmp_path: Path, make_recipe: Any) -> None:
    directory = RunDirectory(tmp_path)
    with directory.in_use():
        with pytest.raises(UserError, match="has no run to resume"):
            directory.check(make_recipe(), resume=True)
        directory.write_recipe(make_recipe())
        directory.check(make_recipe(), resume=True)
        with pytest.raises(UserError, match=r"different: epochs \(3, now 4\), seed \(0, now 1\)"):
            directory.check(make_recipe(epochs=4, seed=1), resume=True)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    directory = RunDirectory(tmp_path / "run")
    with pytest.raises(UserError, match="cannot use this folder"), directory.in_use():
        pass


def test_default_paths_count_up(tmp_path: Path) -> None:
    root = tmp_path / "runs"

    def path(name: str, *, resume: bool = False) -> str:
        return default_path(name, resume=resume, root=root).relative_to(root).as_posix()

    assert path("demo") == "demo-1"
    with pytest.raises(UserError, match="there is no run to resume"):
        path("demo", resume=True)
    for name in ("demo-1", "demo-9", "demo-10", "demo-x", "demo-11-old"):
        (root / name).mkdir(parents=True)
    assert path("demo") == "demo-11"
    assert path("demo", resume=True) == "demo-10"
    assert path("some/where/mine.yaml") == "mine-1"
    assert path("cifar10/resnet32-bp") == "cifar10/resnet32-bp-1"
