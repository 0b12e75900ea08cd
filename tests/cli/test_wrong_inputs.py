"""Bad input: one clear line on stderr for each fault, exit code 2, nothing half-written."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.conftest import limit_file_size
from platforms import posix_only

Hpff = Callable[..., Any]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below the folder, with its content."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refused(hpff: Hpff, folder: Path, *arguments: str, faults: int = 1) -> str:
    """Run a command that must be refused without a trace; what it says."""
    before, folders = tree(folder), {path for path in folder.rglob("*") if path.is_dir()}
    answer = hpff(*arguments)
    lines = answer.err.splitlines()
    assert answer.code == 2
    assert len(lines) == faults, answer.err
    assert all(line.startswith("hpff: ") for line in lines)
    assert "Traceback" not in answer.err
    assert answer.out == ""
    assert tree(folder) == before
    assert {path for path in folder.rglob("*") if path.is_dir()} == folders
    return str(answer.err)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tran", "demo"], ["tran", "train"]),
        (["train"], ["Missing argument 'RECIPE'"]),
        (["train", "demo", "--fast"], ["No such option: --fast"]),
        (["train", "dem"], ["dem: unknown recipe", "hpff list recipes", "did you mean demo?"]),
        (["train", "gone.yaml"], ["gone.yaml: cannot read this recipe", "No such file"]),
        (["train", "tiny.yaml", "epochs"], ["epochs: not an override", "key=value"]),
        (["train", "tiny.yaml", "epochs=[1"], ["epochs=[1: broken YAML"]),
        (["train", "tiny.yaml", "epoch=1"], ["epoch: unknown key", "did you mean epochs?"]),
        (["train", "tiny.yaml", "epochs=ten"], ["epochs: is 'ten'", "a whole number"]),
        (["train", "tiny.yaml", "cascade=4"], ["cascade: is 4", "at most the number of modules"]),
        (["train", "tiny.yaml", "patches=0"], ["patches: is 0", "at least 1"]),
        (["train", "tiny.yaml", "modules=11"], ["modules=11", "1 to 10 modules"]),
        (["train", "tiny.yaml", "modules=[stem]"], ["stem"]),
        (["train", "tiny.yaml", "method=dlg"], ["method: unknown method 'dlg'"]),
        (["train", "tiny.yaml", "model=resnet21"], ["model: unknown model 'resnet21'"]),
        (["train", "tiny.yaml", "data=digit"], ["data: is digit", "did you mean digits?"]),
        (["train", "tiny.yaml", "data=parquet:gone"], ["gone", "train*.parquet"]),
        (["train", "tiny.yaml", "batch_size=4096", "subset=null"], ["batch_size is 4096", "1437"]),
        (["train", "tiny.yaml", "--resume"], ["runs/tiny-1", "no run to resume"]),
        (["train", "tiny.yaml", "--resume", "--out", "gone"], ["gone", "has no run to resume"]),
        (["train", "tiny.yaml", "--out", "tiny.yaml"], ["tiny.yaml: cannot use this folder"]),
        (["compare", "tiny.yaml", "--methods", ""], ["--methods: is ''"]),
        (["compare", "tiny.yaml", "--methods", "bp,dgl+hpf"], ["dgl+hpf", "METHOD+hpff"]),
        (["compare", "tiny.yaml", "--methods", "bp,,dgl"], ["--methods: is 'bp,,dgl'"]),
        (["compare", "tiny.yaml", "--methods", "bp+hpff"], ["bp+hpff: unknown label"]),
        (["compare", "tiny.yaml", "--methods", "dlg+cl"], ["unknown method 'dlg'"]),
        (["compare", "tiny.yaml", "--methods", "acurate"], ["acurate", "did you mean accurate?"]),
        (["compare", "tiny.yaml", "--seeds", "0,one"], ["--seeds: is '0,one'"]),
        (["compare", "tiny.yaml", "modules=11"], ["modules=11"]),
        (["compare", "tiny.yaml", "--resume", "--out", "gone"], ["no comparison to resume"]),
        (["compare", "tiny.yaml", "--seeds", "0,00"], ["--seeds: is '0,00'", "each seed once"]),
        (
            ["compare", "tiny.yaml", "--seeds", "9" * 25],
            ["seed: is 9", "a whole number of at most"],
        ),
        (["compare", "tiny.yaml", "--seeds", "9" * 5000], ["--seeds: is '999"]),
        (["compare", "tiny.yaml", "--methods", "dgl+hpff01,dgl+hpff1"], ["dgl+hpff01: unknown"]),
        (["train", "tiny.yaml", f"seed={'9' * 23}"], ["seed: is 9", "a whole number of at most"]),
        (["train", "tiny.yaml", f"seed={'9' * 5000}"], ["seed=999", "broken YAML"]),
        (["train", "tiny.yaml", f"seed=0x{'f' * 5000}"], ["seed: is a value of thousands"]),
        (["train", "tiny.yaml", "seed=2020-13-45"], ["seed=2020-13-45: broken YAML"]),
        (["train", "tiny.yaml", "threads=1000000000000"], ["threads: is 1000000000000", "1024"]),
        (["train", "tiny.yaml", "model.num_classes=5"], ["model.num_classes: is what the data"]),
        (["train", "tiny.yaml", "model.in_channels=3"], ["model.in_channels: is what the data"]),
        (["train", "tiny.yaml", "model.width=0"], ["model: width is 0"]),
        (["train", "tiny.yaml", "model.width=-1"], ["model: width is -1"]),
        (["train", "tiny.yaml", "model.width=1.5"], ["model: width is 1.5"]),
        (["train", "tiny.yaml", "model.width=abc"], ["model: width is 'abc'"]),
        (["train", "tiny.yaml", f"model.width={10**12}"], ["model: width is 10000", "most 65536"]),
        (["train", "tiny.yaml", "model.weights=x.pt"], ["model: 'weights' is no", "one of width"]),
        (["train", "tiny.yaml", "model={name: timm/resnet18, depth: 1e9}"], ["at most 1000"]),
        (["train", "tiny.yaml", "model=timm/resnet18.nope"], ["no tag 'nope'", "a1_in1k"]),
        (["train", "tiny.yaml", "model=resnet²"], ["model: unknown model 'resnet²'"]),
        (
            ["train", "tiny.yaml", "method.method=dgl"],
            ["method: method 'dgl' has no setting 'method'"],
        ),
        (["train", "tiny.yaml", f"epochs={'[' * 3000}"], ["epochs=[[", "nested too deeply"]),
        (["train", "tiny.yaml", "epochs=&a [*a]"], ["aliases such as *a are not read"]),
        (["train", "tiny.yaml", "patches=1000000000"], ["patches: is 1000000000", "at most 64"]),
        (["train", "tiny.yaml", "image_size=65536"], ["image_size: is 65536", "at most 4096"]),
        (["train", "tiny.yaml", "batch_size=1e14"], ["batch_size: is 1000", "at most 10000000"]),
        (["train", "tiny.yaml", "method={name: dgl, hidden_layers: 1e9}"], ["expected a whole"]),
        (["train", "tiny.yaml", f"method={{name: dgl, hidden_layers: {10**9}}}"], ["0 to 100"]),
        (["train", "tiny.yaml", "method={name: auglocal, depth: 1001}"], ["from 1 to 1000"]),
        (
            ["train", "tiny.yaml", f"method={{name: predsim, feature_size: 0x{'f' * 5000}}}"],
            ["predsim: feature_size is a value of thousands of digits", "1 to 1000000"],
        ),
        (["train", "tiny.yaml", "data=parquet:~/gone"], [f"{Path.home()}/gone does not exist"]),
        (["train", "tiny.yaml", "data=folder:~/gone"], [f"{Path.home()}/gone does not exist"]),
        (["train", "tiny.yaml", "optimizer.weight_decay=1e300"], ["weight_decay", "most 1e30"]),
        (["train", "tiny.yaml", "optimizer.lr=1e300"], ["optimizer.lr: is 1e+300", "most 1e30"]),
        (["train", "tiny.yaml", f"optimizer.lr={10**400}"], ["optimizer.lr: is 1000", "most 1e30"]),
        (["train", "tiny.yaml", "independent_weight=0"], ["independent_weight: is 0", "above 0"]),
        (["train", "tiny.yaml", "cascade_weight=.inf"], ["cascade_weight: is inf"]),
        (["train", "tiny.yaml", "epochs=1"], ["epochs: is 1", "schedule.name=constant"]),
        (["train", ""], ["the recipe's name is empty"]),
        (["list", "model"], ["model", "models"]),
        (["recipe", "check", "tiny.yaml", "modules=11"], ["modules=11"]),
        (["recipe", "copy", "demo", "demo.txt"], ["demo.txt", ".yaml"]),
        (["recipe", "copy", "demo", "tiny.yaml"], ["tiny.yaml: exists already"]),
        (["recipe", "copy", "demo", "gone/demo.yaml"], ["gone/demo.yaml: cannot write this file"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_a_wrong_command_is_one_line(
    hpff: Hpff, folder: Path, arguments: list[str], words: list[str]
) -> None:
    message = refused(hpff, folder, *arguments)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("text", ["epochs: [1", "a: b: c\n", "epochs: 1\nepochs: 2\n", "- 1\n"])
def test_broken_yaml(hpff: Hpff, folder: Path, text: str) -> None:
    (folder / "broken.yaml").write_text(text)
    assert "broken.yaml: " in refused(hpff, folder, "train", "broken.yaml")


def test_several_faults_are_several_lines(hpff: Hpff, folder: Path) -> None:
    changes = ["epochs=0", "optimizer.lr=-1", "method=dlg", "epoch=3"]
    for arguments in (["train", "tiny.yaml"], ["recipe", "check", "tiny.yaml"]):
        message = refused(hpff, folder, *arguments, *changes, faults=4)
        assert all(f"tiny.yaml: {change.partition('=')[0]}: " in message for change in changes)


def test_a_truncated_parquet(hpff: Hpff, folder: Path, parquet: Path) -> None:
    file = parquet / "train.parquet"
    file.write_bytes(file.read_bytes()[:-200])
    message = refused(hpff, folder, "train", "tiny.yaml", "data=parquet:data")
    assert "data/train.parquet" in message


def test_a_missing_parquet(hpff: Hpff, folder: Path, parquet: Path) -> None:
    (parquet / "test.parquet").unlink()
    assert "test*.parquet" in refused(hpff, folder, "train", "tiny.yaml", "data=parquet:data")


def test_images_of_other_sizes(
    hpff: Hpff, folder: Path, parquet: Path, write_parquet: Callable[..., None]
) -> None:
    write_parquet(parquet / "train.parquet", [*range(10)] * 13, sizes=[8, 8, 9, 8])
    message = refused(hpff, folder, "train", "tiny.yaml", "data=parquet:data")
    assert "train.parquet" in message
    assert "row 2" in message


def test_labels_out_of_range(
    hpff: Hpff, folder: Path, parquet: Path, write_parquet: Callable[..., None]
) -> None:
    write_parquet(parquet / "test.parquet", [*range(10)] * 2 + [10])
    message = refused(hpff, folder, "train", "tiny.yaml", "data=parquet:data")
    assert "test.parquet" in message
    assert "row 20: the label is 10; expected 0 to 9" in message


@pytest.mark.parametrize(
    "setting",
    [
        "reconstruction: [a, b]",
        "reconstruction: ab",
        "classification: [1, .nan]",
        "hidden: x",
        "hidden: 0",
        "hidden: 65537",
        "decoders: 65",
        "temperature: 0",
        "mean: 3",
        "mean: [.1, .2]",
        "std: [0]",
        "std: []",
    ],
)
def test_wrong_settings_of_infopro(hpff: Hpff, folder: Path, setting: str) -> None:
    method = f"method={{name: infopro, {setting}}}"
    message = refused(hpff, folder, "train", "tiny.yaml", method, "--out", "run")
    assert f"infopro: {setting.partition(':')[0]} " in message


@pytest.mark.parametrize("report", ["{}", "[]"])
def test_a_damaged_report(hpff: Hpff, folder: Path, report: str) -> None:
    arguments = ["train", "tiny.yaml", "--out", "run"]
    assert hpff(*arguments).code == 0
    (folder / "run" / "report.json").write_text(report)
    assert "report.json: is not a readable" in refused(hpff, folder, *arguments, "--resume")


def test_sound_parquet_is_taken(hpff: Hpff, parquet: Path) -> None:
    answer = hpff("train", "tiny.yaml", "data=parquet:data", "--out", "run")
    assert answer.code == 0, answer.err


def test_a_folder_with_other_things(hpff: Hpff, folder: Path) -> None:
    for command in ("train", "compare"):
        assert "is not empty" in refused(hpff, folder, command, "tiny.yaml", "--out", ".")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder(hpff: Hpff, folder: Path) -> None:
    (folder / "locked").mkdir(mode=0o500)
    message = refused(hpff, folder, "train", "tiny.yaml", "--out", "locked/run")
    assert "locked/run: cannot use this folder" in message


@posix_only
def test_a_folder_that_nobody_may_write_to(hpff: Hpff, folder: Path) -> None:
    message = refused(hpff, folder, "train", "tiny.yaml", "--out", "/proc/hpff-run")
    assert "/proc/hpff-run: cannot use this folder" in message


def test_a_run_directory_in_use(
    hpff: Hpff, folder: Path, start_process: Callable[..., Any]
) -> None:
    start_process("train", "tiny.yaml", "epochs=100000", "--out", "run")
    deadline = time.monotonic() + 300
    while not (folder / "run" / "recipe.yaml").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for extra in ([], ["--resume"]):
        answer = hpff("train", "tiny.yaml", "--out", "run", *extra)
        assert answer.code == 2
        assert answer.err.startswith("hpff: run: is in use by another hpff process")
        assert len(answer.err.splitlines()) == 1


def test_nan_loss(hpff: Hpff, folder: Path) -> None:
    answer = hpff("train", "tiny.yaml", "optimizer.lr=1e30", "--out", "run")
    assert answer.code == 2
    last = answer.err.splitlines()[-1]
    assert last.startswith("hpff: the loss at step 2 of epoch 1 is not a finite number")
    assert "optimizer.lr" in last
    assert "nothing was saved yet" in last
    assert not (folder / "run" / "checkpoint.pt").exists()


@pytest.fixture
def cut_run(hpff: Hpff, folder: Path) -> Path:
    """Return the directory of a run that lacks its end."""
    assert hpff("train", "tiny.yaml", "--out", "run").code == 0
    (folder / "run" / "report.json").unlink()
    return folder / "run"


def test_resume_with_another_recipe(hpff: Hpff, folder: Path, cut_run: Path) -> None:
    message = refused(
        hpff, folder, "train", "tiny.yaml", "optimizer.lr=0.2", "--out", "run", "--resume"
    )
    assert "different: optimizer.lr (0.1, now 0.2)" in message


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_checkpoint(hpff: Hpff, folder: Path, cut_run: Path, share: float) -> None:
    path = cut_run / "checkpoint.pt"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    message = refused(hpff, folder, "train", "tiny.yaml", "--out", "run", "--resume")
    assert "run/checkpoint.pt: is truncated, damaged" in message


def test_a_flipped_bit_in_a_checkpoint(hpff: Hpff, folder: Path, cut_run: Path) -> None:
    """In the middle, among the weights, where torch reads it without a word."""
    path = cut_run / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    message = refused(hpff, folder, "train", "tiny.yaml", "--out", "run", "--resume")
    assert "run/checkpoint.pt: is truncated, damaged" in message


def test_a_checkpoint_with_a_pickle_inside(hpff: Hpff, folder: Path, cut_run: Path) -> None:
    torch.save({"format": "hpff checkpoint 2", "learner": Path("evil")}, cut_run / "checkpoint.pt")
    message = refused(hpff, folder, "train", "tiny.yaml", "--out", "run", "--resume")
    assert "run/checkpoint.pt: is truncated, damaged or of another program" in message


def test_a_foreign_checkpoint(hpff: Hpff, folder: Path, cut_run: Path) -> None:
    assert hpff("train", "tiny.yaml", "model.width=8", "--out", "other").code == 0
    shutil.copy(folder / "other" / "checkpoint.pt", cut_run / "checkpoint.pt")
    message = refused(hpff, folder, "train", "tiny.yaml", "--out", "run", "--resume")
    assert "run/checkpoint.pt: is of another recipe" in message


@posix_only
def test_a_full_disk_while_writing_a_checkpoint(hpff_fork: Hpff, folder: Path) -> None:
    """The operating system refuses to let a file grow: metrics fit, a checkpoint does not."""
    answer = hpff_fork("train", "tiny.yaml", "--out", "run", before=limit_file_size)
    assert answer.code == 2
    assert "Traceback" not in answer.err
    last = answer.err.splitlines()[-1]
    assert last.startswith("hpff: run/checkpoint.pt: cannot write this file (File too large)")
    left = {path.name for path in (folder / "run").iterdir()}
    assert left == {"recipe.yaml", "metrics.jsonl", "metrics.csv", "tensorboard"}
    assert hpff_fork("train", "tiny.yaml", "--out", "run", "--resume").code == 0


def test_a_real_process_says_it_the_same_way(hpff_process: Hpff, folder: Path) -> None:
    message = refused(hpff_process, folder, "train", "tiny.yaml", "epochs=0", "--out", "run")
    assert "epochs: is 0" in message
    message = refused(hpff_process, folder, "train", "tiny.yaml", "modules=11", "--out", "run")
    assert "modules=11" in message
