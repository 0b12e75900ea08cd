"""`hpff evaluate`: the run's own test set again, other data, classes by name and by position."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from cli.conftest import TINY
from PIL import Image

from hpff import data
from hpff.analysis import ensemble
from hpff.analysis.subjects import Subject
from hpff.cli import main
from hpff.data.classes import shared_classes
from hpff.runs import digests
from hpff.runs.finished_run import FinishedRun

Hpff = Callable[..., Any]

CIFAR = data.PUBLISHED_DATASETS["cifar10"].class_names
STL = data.PUBLISHED_DATASETS["stl10"].class_names
SAME = {
    name: CIFAR.index({"car": "automobile"}.get(name, name)) for name in STL if name != "monkey"
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run on digits, to be copied."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY)
    changes = ("epochs=4", "subset=640", "threads=1")
    assert main(["train", str(folder / "tiny.yaml"), *changes, "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def run(folder: Path, trained: Path) -> Path:
    """Return a copy of it, in the folder that the test works in."""
    return shutil.copytree(trained, folder / "run")


@pytest.fixture
def spots(hpff: Hpff, folder: Path) -> Path:
    """Return a run on CIFAR-10's class names: class i has its spot at place i of 4x4."""
    write_spots(folder / "spots", {name: place for place, name in enumerate(CIFAR)}, 8)
    changes = ["data=folder:spots", "treatment=plain", "augment=false", "method=bp"]
    scale = ["epochs=12", "batch_size=20", "subset=null", "model.width=8"]
    assert hpff("train", "tiny.yaml", *changes, *scale, "--out", "spots-run").code == 0
    return folder / "spots-run"


def write_spots(folder: Path, places: Mapping[str, int], side: int) -> None:
    """Write images of one bright spot, whose place is their class's."""
    cell = side // 4
    for name, place in places.items():
        for split, count in (("train", 8), ("test", 4)):
            home = folder / split / name
            home.mkdir(parents=True)
            for number in range(count):
                image = Image.new("RGB", (side, side), (8 * number,) * 3)
                left, top = cell * (place % 4), cell * (place // 4)
                image.paste((250, 250, 250), (left, top, left + cell, top + cell))
                image.save(home / f"{number}.png")


def evaluate(hpff: Hpff, *arguments: str) -> dict[str, Any]:
    answer = hpff("evaluate", *arguments, "--json")
    assert answer.code == 0, answer.err
    found: dict[str, Any] = json.loads(answer.out)
    return found


def test_a_run_on_its_own_test_set_gives_its_report(hpff: Hpff, run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    found = evaluate(hpff, "run")
    assert found["top1_error_percent"] == report["test_error_percent"]
    assert found["top5_error_percent"] == report["test_top5_error_percent"]
    assert found["top5_error_percent"] < found["top1_error_percent"]
    assert found["loss"] == report["test_loss"]
    assert found["images"] == 360
    assert len(found["classes"]) == 10


def test_the_training_split(hpff: Hpff, run: Path) -> None:
    found = evaluate(hpff, "run", "--split", "train", "--dataset", "digits")
    assert found["images"] == 1437
    answer = hpff("evaluate", "run", "--split", "train")
    assert f"{found['top1_error_percent']:.2f}" in answer.out
    assert "on digits (train, 1437 images): 10 classes matched by name" in answer.out


def test_top_five(hpff: Hpff, run: Path) -> None:
    """Against the likeliest five of each image, found one by one."""
    digits = data.load("digits")
    batches = data.Batches(
        digits.test,
        digits,
        batch_size=360,
        device="cpu",
        shuffle=False,
        augment=False,
        drop_last=False,
    )
    images, labels = next(batches.epoch(torch.Generator()))
    with torch.no_grad():
        logits = FinishedRun.read(run).model()(images)
    wrong = sum(
        int(label) not in sorted(range(10), key=lambda c: -row[c])[:5]
        for row, label in zip(logits.tolist(), labels, strict=True)
    )
    assert evaluate(hpff, "run")["top5_error_percent"] == pytest.approx(100 * wrong / 360)


def test_cifar_and_stl_share_nine_classes() -> None:
    pairs = {(STL[theirs], CIFAR[ours]) for theirs, ours in shared_classes(STL, CIFAR).items()}
    alike = {(name, name) for name in set(CIFAR) & set(STL)}
    assert pairs == alike | {("car", "automobile")}
    assert len(pairs) == 9


def test_other_data_by_name_are_resized_and_their_classes_found(
    hpff: Hpff, folder: Path, spots: Path
) -> None:
    """The spots go with the names: what is learned on CIFAR's is right on STL's nine."""
    assert evaluate(hpff, "spots-run")["top1_error_percent"] < 10
    write_spots(folder / "other", {**SAME, "monkey": 15}, 12)
    found = evaluate(hpff, "spots-run", "--dataset", "folder:other", "--treatment", "plain")
    assert found["images"] == 9 * 4
    assert found["top1_error_percent"] < 10
    assert ["car", "automobile"] in found["classes"]
    assert found["protocol"] == (
        "9 classes matched by name, images of monkey left out, no images of frog; images resized "
        "from 12x12 to 8x8 (bilinear, antialiased); normalized as in training; answers among all "
        "10 classes of the run"
    )


def test_by_position_names_do_not_matter(hpff: Hpff, folder: Path, spots: Path) -> None:
    write_spots(folder / "other", {name: place for place, name in enumerate(STL)}, 8)
    arguments = ("spots-run", "--dataset", "folder:other", "--match")
    by_position = evaluate(hpff, *arguments, "position")
    assert by_position["images"] == 40
    assert by_position["top1_error_percent"] < 10
    assert "images resized and their middle 8x8 taken" in by_position["protocol"]
    assert evaluate(hpff, *arguments, "name")["top1_error_percent"] > 30


def test_class_names_can_be_given(hpff: Hpff, folder: Path, run: Path) -> None:
    names = [f"number {index}" for index in range(10)]
    answer = hpff("evaluate", "run", "--class-names", ",".join(names))
    assert answer.code == 2
    assert "shares no class with the run by name (0, 1, 2" in answer.err
    found = evaluate(hpff, "run", "--class-names", ",".join(map(str, range(10))))
    assert found["images"] == 360


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gone"], ["gone: holds no run (no recipe.yaml)"]),
        (["run", "--split", "val"], ["--split: is 'val', expected test or train"]),
        (["run", "--match", "names"], ["--match: is 'names', expected name or position"]),
        (
            ["run", "--dataset", "digits", "--treatment", "cifar"],
            ["treatment is cifar, but digits"],
        ),
        (["run", "--dataset", ""], ['there is no dataset ""']),
        (["run", "--dataset", "mnist"], ['there is no dataset "mnist"']),
        (["run", "--class-names", "a,b"], ["2 class names were given for its 10 classes"]),
        (["run", "--class-names", "a,,b"], ["--class-names: is 'a,,b'"]),
        (["run", "--dataset", "folder:other"], ["shares no class with the run by name"]),
        (["run", "--dataset", "folder:other", "--match", "position"], ["has 2 classes", "10"]),
        (["run", "--dataset", "folder:digits"], ["have 3 channels, and the run's 1"]),
    ],
)
def test_what_cannot_be_evaluated(
    hpff: Hpff, folder: Path, run: Path, arguments: list[str], words: list[str]
) -> None:
    write_spots(folder / "other", {"a": 0, "b": 1}, 8)
    write_spots(folder / "digits", {str(digit): digit for digit in range(10)}, 8)
    answer = hpff("evaluate", *arguments)
    assert answer.code == 2
    assert len(answer.err.splitlines()) == 1
    assert all(word in answer.err for word in words), answer.err


def test_a_run_that_has_not_ended(hpff: Hpff, run: Path) -> None:
    (run / "report.json").unlink()
    assert "run: its run has not ended; go on" in hpff("evaluate", "run").err


@pytest.mark.parametrize("name", ["model.safetensors", "recipe.yaml"])
@pytest.mark.parametrize("command", [("evaluate",), ("export",)])
def test_a_damaged_file(hpff: Hpff, folder: Path, run: Path, name: str, command: Any) -> None:
    """One bit of it, in the middle: what can be read all the same is refused too."""
    content = bytearray((run / name).read_bytes())
    content[len(content) // 2] ^= 4
    (run / name).write_bytes(content)
    answer = hpff(*command, "run", *(["out"] if command == ("export",) else []))
    assert answer.code == 2
    assert f"run/{name}: is damaged, or of another run" in answer.err
    assert len(answer.err.splitlines()) == 1
    assert not (folder / "out").exists()


def test_a_damaged_report(hpff: Hpff, run: Path) -> None:
    report = run / "report.json"
    text = report.read_text()
    report.write_text(text.replace('"epochs": 4', '"epochs": 5'))
    for command in (("evaluate", "run"), ("export", "run", "out")):
        answer = hpff(*command)
        assert answer.code == 2
        assert "run/report.json: is not a readable report, or it is damaged" in answer.err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w * torch.inf, "conv1.weight has numbers that are not finite"),
        (lambda w: w.double(), "conv1.weight is float64 of shape"),
        (lambda w: w[:1].clone(), "conv1.weight is float32 of shape (1,"),
    ],
)
@pytest.mark.parametrize("command", [("evaluate", "run"), ("export", "run", "out")])
def test_weights_that_are_whole_and_wrong(
    hpff: Hpff, run: Path, command: Any, change: Any, words: str
) -> None:
    path = run / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    name = next(name for name in sorted(weights) if name.endswith("weight"))
    weights[name] = change(weights[name])
    path.write_bytes(safetensors.torch.save(weights))
    report = json.loads((run / "report.json").read_text())
    report["files"][path.name] = digests.sha256(path.read_bytes())
    (run / "report.json").write_bytes(digests.json_text(digests.seal_json(report)))
    answer = hpff(*command)
    assert answer.code == 2
    expected = "run/model.safetensors: cannot be used as the weights of resnet20 ("
    assert expected + words.replace("conv1.weight", name) in answer.err
    assert len(answer.err.splitlines()) == 1


def test_data_that_are_not_what_they_were(
    hpff: Hpff, folder: Path, spots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = evaluate(hpff, "spots-run")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert evaluate(hpff, "../spots-run")["images"] == before["images"]
    monkeypatch.chdir(folder)
    image = next((folder / "spots" / "test").rglob("*.png"))
    Image.new("RGB", (8, 8)).save(image)
    answer = hpff("evaluate", "spots-run")
    assert answer.code == 2
    assert "different: test images themselves; to test on them as they are" in answer.err
    assert evaluate(hpff, "spots-run", "--dataset", "folder:spots")["images"] == before["images"]


def test_exits_by_themselves_and_together(hpff: Hpff, run: Path) -> None:
    answer = hpff("evaluate", "run", "--exits")
    assert (answer.code, answer.err) == (0, "")
    shown = dict(re.findall(r"^ *(\S.*\S) +(\d+\.\d\d) *$", answer.out, re.MULTILINE))
    plain = json.loads(hpff("evaluate", "run", "--exits", "--json").out)
    assert plain["run"] == "run"
    subject = Subject.of_run(run)
    learner = subject.network.learner
    assert learner is not None
    names = ["independent, module 1", "independent, module 2", "cascade, module 2"]
    assert list(shown) == [*names, "the head", "all together"]
    wrong = total = 0
    for images, targets in subject.test(None):
        if len(targets) > 1:
            wrong += int((ensemble(learner, images).argmax(1) != targets).sum())
            total += len(targets)
    assert plain["ensemble_error_percent"] == pytest.approx(100 * wrong / total)
    assert shown["all together"] == f"{100 * wrong / total:.2f}"
    assert shown["the head"] == f"{plain['cascade_errors'][-1]:.2f}"


@pytest.mark.parametrize("other", [["--match", "position"], ["--split", "train"], ["--flip"]])
def test_exits_go_with_no_other_way_to_test(hpff: Hpff, run: Path, other: list[str]) -> None:
    answer = hpff("evaluate", str(run), "--exits", *other)
    assert answer.code == 2
    assert answer.err == f"hpff: {other[0]}: does not go with --exits; leave out one of the two\n"
