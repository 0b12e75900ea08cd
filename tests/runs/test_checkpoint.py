from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from platforms import posix_only

from hpff.errors import UserError
from hpff.runs import checkpoint
from hpff.runs.atomic_files import write_atomically
from hpff.runs.checkpoint import Checkpoint
from hpff.training import loop


def example(epoch: int = 1) -> Checkpoint:
    return Checkpoint(
        recipe={"optimizer": {"lr": 0.1}, "modules": ["a", "b"]},
        epoch=epoch,
        learner={"weight": torch.full((1000,), float(epoch))},
        optimizers=[
            {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 1}]}
        ],
        random=checkpoint.random_state(),
        history=[{"epoch": 1, "loss": 0.5, "test_error_percent": None}],
    )


class Evil:
    """Runs code when it is unpickled, if one lets it."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("evil"),))


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    saved = example()
    checkpoint.save(path, saved)
    loaded = checkpoint.load(path)
    assert torch.equal(loaded.learner["weight"], saved.learner["weight"])
    assert torch.equal(loaded.random["cpu"], saved.random["cpu"])
    for field in ("recipe", "epoch", "history"):
        assert getattr(loaded, field) == getattr(saved, field)
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, example())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"checkpoint\.pt: is truncated, damaged") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


def test_garbage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(bytes(range(256)) * 20)
    with pytest.raises(UserError, match="is truncated, damaged or of another program"):
        checkpoint.load(path)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_inside_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint.pt"
    content = {"format": checkpoint.FORMAT, "epoch": Evil()}
    torch.save(content, path, pickle_protocol=protocol)
    message = "holds a pickle that could run code" if protocol == 2 else "nothing in it was run"
    with pytest.raises(UserError, match=message):
        checkpoint.load(path)
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(UserError, match="nothing in it was run"):
        checkpoint.load(path)
    assert not Path("evil").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, "is not a checkpoint of hpff train"),
        ([1, 2], "is not a checkpoint of hpff train"),
        (torch.ones(3), "is not a checkpoint of hpff train"),
        ({"format": checkpoint.FORMAT, "epoch": 1}, "is not a whole checkpoint"),
    ],
)
def test_another_programs_file_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match=message):
        checkpoint.load(path)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        checkpoint.load(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": {"model": "resnet32"}}, "is of another recipe"),
        ({"learner": {"weight": torch.ones(3)}}, "does not fit this run"),
        ({"learner": [1]}, "does not fit this run"),
        ({"optimizers": []}, "0 optimizer states for 3 optimizers"),
        ({"optimizers": 3}, "does not fit this run"),
        ({"random": {}}, "does not fit this run"),
        ({"random": {"cpu": torch.ones(3), "cuda": []}}, "does not fit this run"),
        ({"history": []}, "does not fit this run"),
        ({"history": [3]}, "does not fit this run"),
        ({"epoch": "two"}, "does not fit this run"),
        ({"epoch": 2}, "its epochs and its history differ"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    tmp_path: Path, make_recipe: Any, silent: Any, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        loop.train(make_recipe(), tmp_path, resume=False, observer=silent(3))
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, dataclasses.replace(checkpoint.load(path), **change))
    before = path.read_bytes()
    with pytest.raises(UserError, match=message) as caught:
        loop.train(make_recipe(), tmp_path, resume=True, observer=silent())
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


@posix_only
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    """The limit on a file's size is a real write error of the operating system."""
    import resource  # not on Windows

    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, example(1))
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write this file") as caught:
            checkpoint.save(path, example(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


@posix_only
def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """Die between the temporary file and its renaming: the worst moment there is."""
    path = tmp_path / "file"
    write_atomically(path, b"old")
    program = (
        "import os, sys; from pathlib import Path; from hpff.runs import atomic_files\n"
        "os.fsync = lambda handle: os.kill(os.getpid(), 9)\n"
        "atomic_files.write_atomically(Path(sys.argv[1]), b'new' * 1000)"
    )
    code = subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode
    assert code == -9
    assert path.read_bytes() == b"old"
