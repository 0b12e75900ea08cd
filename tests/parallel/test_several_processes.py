"""Whole runs on several real processes: one format on disk, and faults that are named."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import PLAIN
from platforms import posix_only
from ranks import free_port
from safetensors.torch import load_file

from hpff.cli import main
from hpff.errors import UserError
from hpff.parallel.processes import joined
from hpff.recipes import files

ROOT = Path(__file__).resolve().parents[2]
QUICK = {**PLAIN, "epochs": 2, "threads": 1, "rank_timeout": 120.0}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "hpff.cli", "train", *map(str, arguments)]


def environment(**more: object) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, **{k: str(v) for k, v in more.items()}}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(QUICK))
    return file


@pytest.mark.long
def test_a_killed_run_on_two_goes_on_alone_to_the_same_weights(
    recipe: Path, tmp_path: Path
) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert main(["train", str(recipe), "epochs=3", "--out", str(alone)]) == 0
    started = subprocess.Popen(
        command(recipe, "epochs=3", "parallel=modules", "ranks=2", "--out", shared),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (shared / "checkpoint.pt").exists():
        assert started.poll() is None
        time.sleep(0.02)
    os.kill(_ranks_of(started.pid)[1], signal.SIGKILL)
    _, said = started.communicate(timeout=120)
    assert started.returncode == 2
    assert "was killed by signal 9, so the other ranks were ended" in said
    assert not (shared / "model.safetensors").exists()

    assert main(["train", str(recipe), "epochs=3", "--out", str(shared), "--resume"]) == 0

    files = [folder / "model.safetensors" for folder in (alone, shared)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.long
def test_torchrun_starts_ranks_again_and_the_weights_are_the_same(
    recipe: Path, tmp_path: Path
) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert main(["train", str(recipe), "epochs=8", "--out", str(alone)]) == 0
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 1 -m"
    given = [recipe, "epochs=8", "parallel=modules", "ranks=2", "--out", shared]
    with (tmp_path / "said").open("w") as said:
        started = subprocess.Popen(
            [sys.executable, *torchrun.split(), *command(*given)[2:]],
            env=environment(),
            stdout=said,
            stderr=said,
        )
        while not _metrics(shared):
            assert started.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.02)
        os.kill(_ranks_of(started.pid)[1], signal.SIGKILL)
        assert started.wait(timeout=200) == 0, (tmp_path / "said").read_text()

    assert len(_metrics(shared)) == 8
    assert "exitcode: -9" in (tmp_path / "said").read_text()
    files = [folder / "model.safetensors" for folder in (alone, shared)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.long
def test_a_grid_trains_as_data_parallel_and_goes_on_with_any_number_of_ranks(
    recipe: Path, tmp_path: Path
) -> None:
    grid = ["parallel=modules", "ranks=2", "replicas=2"]
    recipe.write_text(yaml.safe_dump({**QUICK, "epochs": 4}))
    data, whole, cut = (tmp_path / name for name in ("data", "whole", "cut"))
    for run, given in ((data, ["parallel=data", "ranks=2"]), (whole, grid)):
        subprocess.run(command(recipe, *given, "--out", run), env=environment(), check=True)
    for expected, found in zip(_metrics(data), _metrics(whole), strict=True):
        was, now = json.loads(expected), json.loads(found)
        for key in ("loss", "final_loss", "test_loss"):
            assert now[key] == pytest.approx(was[key], rel=1e-3), key
        for key in ("independent_losses", "cascade_losses"):
            assert now[key] == pytest.approx(was[key], rel=1e-3), key
    states = [load_file(run / "model.safetensors") for run in (data, whole)]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-2, atol=1e-3)

    started = subprocess.Popen(
        command(recipe, *grid, "--out", cut), env=environment(), stderr=subprocess.PIPE, text=True
    )
    while not _metrics(cut):
        assert started.poll() is None
        time.sleep(0.02)
    os.kill(_ranks_of(started.pid)[3], signal.SIGKILL)
    _, said = started.communicate(timeout=120)
    assert "rank 3 was killed by signal 9" in said
    alone, row = (shutil.copytree(cut, tmp_path / name) for name in ("alone", "row"))
    assert main(["train", str(recipe), "--out", str(alone), "--resume"]) == 0
    again = command(recipe, "parallel=modules", "ranks=2", "--out", row, "--resume")
    subprocess.run(again, env=environment(), check=True)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", "-m"]
    again = [sys.executable, *torchrun, *command(recipe, *grid, "--out", cut, "--resume")[2:]]
    subprocess.run(again, env=environment(), check=True)
    assert [len(_metrics(run)) for run in (alone, row, cut)] == [4, 4, 4]
    files = [folder / "model.safetensors" for folder in (alone, row, whole, cut)]
    first, second, third, fourth = (file.read_bytes() for file in files)
    assert first == second
    assert third == fourth


def _metrics(run: Path) -> list[str]:
    """The lines that a run has written, one an epoch."""
    file = run / "metrics.jsonl"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.long
@pytest.mark.parametrize(("kind", "ranks", "stopped"), [("modules", 3, 0), ("data", 2, 1)])
def test_a_stopped_rank_is_named_once_and_the_run_ends(
    kind: str, ranks: int, stopped: int, recipe: Path, tmp_path: Path
) -> None:
    given = ["epochs=1000", f"parallel={kind}", f"ranks={ranks}", "rank_timeout=20"]
    started = subprocess.Popen(
        command(recipe, *given, "--out", tmp_path / "run"),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        assert started.poll() is None
        time.sleep(0.02)
    processes = _ranks_of(started.pid)
    os.kill(processes[stopped], signal.SIGSTOP)
    _, said = started.communicate(timeout=200)
    assert started.returncode == 2
    lines = [line for line in said.splitlines() if line.startswith("hpff: ")]
    assert len(lines) == 1, said
    assert re.search(rf"rank {stopped} is gone or was stopped, .* nothing .*for 20 s", lines[0])
    assert "Traceback" not in said
    assert not any(Path(f"/proc/{process}").exists() for process in processes)
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["modules", "data"])
def test_what_fails_on_a_rank_is_said_once(kind: str, recipe: Path, tmp_path: Path) -> None:
    given = ["optimizer.lr=1e18", f"parallel={kind}", "ranks=2", "--out", tmp_path / "run"]
    done = subprocess.run(
        command(recipe, *given), env=environment(), stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 2
    lines = {line for line in done.stderr.splitlines() if line.startswith("hpff: ")}
    assert len(lines) == 1, done.stderr
    assert "is not a finite number" in lines.pop()
    assert "terminate called" not in done.stderr


@pytest.mark.long
@posix_only
def test_ranks_end_with_the_process_that_started_them(recipe: Path, tmp_path: Path) -> None:
    given = ["epochs=1000", "parallel=data", "ranks=2", "--out", tmp_path / "run"]
    started = subprocess.Popen(command(recipe, *given), env=environment())
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        assert started.poll() is None
        time.sleep(0.02)
    processes = _ranks_of(started.pid)
    started.kill()
    started.wait()
    deadline = time.monotonic() + 30
    while left := [each for each in processes if _is_running(each)]:
        if time.monotonic() > deadline:
            for each in left:
                os.kill(each, signal.SIGKILL)
            raise AssertionError("ranks go on alone")
        time.sleep(0.2)


def _is_running(process: int) -> bool:
    """Whether a process is there; one that nobody has waited for yet is not."""
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.long
def test_batch_norm_over_all_ranks_trains_as_one_process_does(recipe: Path, tmp_path: Path) -> None:
    shared_out = [["parallel=none"]]
    shared_out += [
        ["parallel=data", "ranks=2", f"sync_batch_norm={on}"] for on in ("true", "false")
    ]
    losses = []
    for number, given in enumerate(shared_out):
        run = tmp_path / str(number)
        done = subprocess.run(
            command(recipe, "epochs=2", *given, "--out", run), env=environment(), check=False
        )
        assert done.returncode == 0
        losses.append([json.loads(line)["loss"] for line in _metrics(run)])
    alone, synchronized, own = losses
    assert synchronized == pytest.approx(alone, rel=1e-4)
    assert own != pytest.approx(alone, rel=1e-3)


def test_a_port_in_use_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        names = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in names.items():
            monkeypatch.setenv(name, value)
        said = rf"rank 0 cannot meet the others at 127.0.0.1:{port}: the port is in use"
        with pytest.raises(UserError, match=said) as caught, joined(2, 2.0):
            pass
    assert "\n" not in str(caught.value)


def _ranks_of(parent: int) -> list[int]:
    """The processes that a command has started, in order."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    if not children.exists():
        pytest.skip("this system does not list the children of a process")
    return [int(pid) for pid in children.read_text().split()]


def test_ranks_of_different_recipes_are_refused(recipe: Path, tmp_path: Path) -> None:
    common = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    ranks = [
        subprocess.Popen(
            command(recipe, changed, "parallel=data", "ranks=2", "--out", tmp_path / "run"),
            env=environment(**common, RANK=rank, LOCAL_RANK=rank),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, changed in enumerate(("seed=0", "seed=1"))
    ]
    for rank in ranks:
        _, said = rank.communicate(timeout=200)
        assert rank.returncode == 2
        assert "ranks have different recipes: those of rank 1 are not those of rank 0" in said
        assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_another_number_of_processes_than_ranks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "3"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    said = r"2 ranks \(key ranks\), but 3 processes were started"
    with pytest.raises(UserError, match=said), joined(2, 1.0):
        pass
    said = r"2 ranks × 4 replicas \(keys ranks and replicas\), but 3 processes were started"
    with pytest.raises(UserError, match=said), joined(2, 1.0, 4):
        pass


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["ranks=2"], "ranks: is 2 with parallel none"),
        (["parallel=data", "ranks=3"], "ranks: is 3, expected a divisor of batch_size (64)"),
        (["parallel=modules", "ranks=4"], "expected at most the number of modules (3)"),
        (["parallel=data", "replicas=2"], "replicas: is 2 with parallel data"),
        (["replicas=2"], "replicas: is 2 with parallel none"),
        (["parallel=modules", "ranks=2", "replicas=3"], "replicas: is 3, expected a divisor of"),
        (["parallel=modules", "replicas=64"], "that leaves two images or more"),
        (["parallel=modules", "method=bp"], "parallel: is modules, but bp has one module"),
        (["parallel=modules", "step_per_module=false"], "step_per_module: is false"),
        (["sync_batch_norm=true"], "sync_batch_norm: is true with parallel none"),
        (["parallel=data", "sync_batch_norm=true", "compile=true"], "expected compile=false"),
    ],
)
def test_recipes_that_cannot_be_shared_out_are_refused(
    changes: list[str], expected: str, recipe: Path
) -> None:
    with pytest.raises(UserError) as caught:
        files.load(str(recipe), changes)
    assert expected in str(caught.value)
