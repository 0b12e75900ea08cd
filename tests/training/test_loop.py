from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hpff import data, models
from hpff.analysis.subjects import Subject
from hpff.errors import UserError
from hpff.runs import checkpoint
from hpff.runs.run_directory import RunDirectory
from hpff.training import loop
from hpff.training.setup import assemble

LOCAL = {"method": "dgl"}
BACKPROP = {"method": "bp"}
DROPOUT = {"method": "bp", "model": {"name": "timm/test_resnet", "drop_rate": 0.5}}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Everything that a run's last checkpoint holds, auxiliary networks and momentum too."""
    state = checkpoint.load(path / "checkpoint.pt")
    momentum = {
        f"momentum {index} {key}": value["momentum_buffer"]
        for index, optimizer in enumerate(state.optimizers)
        for key, value in optimizer["state"].items()
    }
    return {**state.learner, **momentum, "random": state.random["cpu"]}


def assert_same_bits(first: Path, second: Path) -> None:
    weights = "model.safetensors"
    assert (first / weights).read_bytes() == (second / weights).read_bytes()
    a, b = tensors(first), tensors(second)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_that_cannot_begin_leaves_nothing_new(
    tmp_path: Path, make_recipe: Any, silent: Any
) -> None:
    class Refusing(silent):
        def started(self, *_: Any) -> None:
            raise UserError("cannot begin")

    run = tmp_path / "new" / "run"
    with pytest.raises(UserError, match="cannot begin"):
        loop.train(make_recipe(), run, resume=False, observer=Refusing())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        loop.train(make_recipe(), run, resume=False, observer=silent(stop_at=3))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="cannot begin"):
        loop.train(make_recipe(), run, resume=True, observer=Refusing())
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_leaves_everything(tmp_path: Path, make_recipe: Any, silent: Any) -> None:
    observer = silent()
    report = loop.train(make_recipe(), tmp_path / "run", resume=False, observer=observer)
    names = {entry.name for entry in (tmp_path / "run").iterdir()}
    assert names == {
        "recipe.yaml",
        "metrics.jsonl",
        "metrics.csv",
        "checkpoint.pt",
        "model.safetensors",
        "report.json",
        "step_memory.json",
        "tensorboard",
    }
    metrics = lines(tmp_path / "run")
    assert [entry["epoch"] for entry in metrics] == [1, 2, 3] == observer.epochs
    assert observer.steps == 3 * 2
    assert report == json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["test_error_percent"] == metrics[-1]["test_error_percent"]
    assert RunDirectory(tmp_path / "run").read_recipe() == make_recipe()


def test_the_saved_weights_are_the_plain_backbone(
    tmp_path: Path, make_recipe: Any, silent: Any
) -> None:
    report = loop.train(make_recipe(), tmp_path, resume=False, observer=silent())
    model = models.create("resnet20", in_channels=1, width=4)
    model.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
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
        wrong = (model.eval()(images).argmax(1) != labels).float().mean()
    assert 100 * wrong.item() == pytest.approx(report["test_error_percent"], abs=1e-4)


def test_tensorboard_shows_every_epoch(tmp_path: Path, make_recipe: Any, silent: Any) -> None:
    loop.train(make_recipe(), tmp_path, resume=False, observer=silent())
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    errors = events.Scalars("error/test")
    assert [event.step for event in errors] == [1, 2, 3]
    expected = [entry["test_error_percent"] for entry in lines(tmp_path)]
    assert [event.value for event in errors] == pytest.approx(expected)
    assert {"independent/1", "independent/3", "cascade/1", "cascade/2"} <= set(
        events.Tags()["scalars"]
    )


@pytest.mark.parametrize("method", [LOCAL, BACKPROP, DROPOUT], ids=["dgl", "bp", "dropout"])
@pytest.mark.parametrize("stop_at", [1, 2, 3, 6])
def test_resume_gives_the_bits_of_an_uninterrupted_run(
    tmp_path: Path, make_recipe: Any, silent: Any, method: dict[str, Any], stop_at: int
) -> None:
    recipe = make_recipe(**method)
    loop.train(recipe, tmp_path / "whole", resume=False, observer=silent())
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe, tmp_path / "cut", resume=False, observer=silent(stop_at))
    observer = silent()
    loop.train(recipe, tmp_path / "cut", resume=True, observer=observer)
    assert observer.opened == [(stop_at - 1) // 2]
    assert_same_bits(tmp_path / "whole", tmp_path / "cut")
    numbers = ("loss", "test_loss", "test_error_percent", "train_error_percent")
    for first, second in zip(lines(tmp_path / "whole"), lines(tmp_path / "cut"), strict=True):
        assert [first[name] for name in numbers] == [second[name] for name in numbers]


def test_a_run_from_before_a_key_was_there_goes_on(
    tmp_path: Path, make_recipe: Any, silent: Any
) -> None:
    recipe, run = make_recipe(), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipe, run, resume=False, observer=silent(stop_at=3))
    saved = checkpoint.load(run / "checkpoint.pt")
    for keys, key in (
        (saved.recipe, "cuda_graph"),
        (saved.recipe, "auxiliary_pool"),
        (saved.recipe["schedule"], "last_lr"),
        (saved.recipe["optimizer"], "name"),
    ):
        del keys[key]
    checkpoint.save(run / "checkpoint.pt", saved)
    loop.train(recipe, run, resume=True, observer=silent())
    loop.train(recipe, tmp_path / "whole", resume=False, observer=silent())
    assert_same_bits(run, tmp_path / "whole")


def test_the_same_recipe_twice_gives_the_same_bits_and_another_seed_others(
    tmp_path: Path, make_recipe: Any, silent: Any
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(seed + 3)  # What was drawn before does not matter.
        loop.train(make_recipe(seed=seed), tmp_path / name, resume=False, observer=silent())
    assert_same_bits(tmp_path / "a", tmp_path / "b")
    first, other = (tmp_path / name / "model.safetensors" for name in ("a", "c"))
    assert first.read_bytes() != other.read_bytes()


def test_stepping_per_module_gives_the_same_bits(
    tmp_path: Path, make_recipe: Any, silent: Any
) -> None:
    for name, per_module in (("each", True), ("all", False)):
        recipe = make_recipe(step_per_module=per_module)
        loop.train(recipe, tmp_path / name, resume=False, observer=silent())
    each, both = (tmp_path / name / "model.safetensors" for name in ("each", "all"))
    assert each.read_bytes() == both.read_bytes()


def test_resume_of_a_finished_run_gives_its_report(
    tmp_path: Path, make_recipe: Any, silent: Any
) -> None:
    report = loop.train(make_recipe(), tmp_path, resume=False, observer=silent())
    observer = silent()
    assert loop.train(make_recipe(), tmp_path, resume=True, observer=observer) == report
    assert observer.opened == []


def test_an_interrupt_after_the_last_epoch_is_made_good(
    tmp_path: Path, make_recipe: Any, silent: Any
) -> None:
    report = loop.train(make_recipe(), tmp_path, resume=False, observer=silent())
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "report.json").unlink()
    (tmp_path / "model.safetensors").unlink()
    assert loop.train(make_recipe(), tmp_path, resume=True, observer=silent()) == report
    assert (tmp_path / "model.safetensors").read_bytes() == weights


def test_a_loss_that_is_not_finite_stops_the_run(
    tmp_path: Path, make_recipe: Any, silent: Any
) -> None:
    schedule = {"name": "constant", "warmup_epochs": 1, "warmup_lr": 0.01}
    recipe = make_recipe(optimizer={"lr": 1e30}, schedule=schedule)
    with pytest.raises(UserError, match=r"of epoch 2 .* the checkpoint of epoch 1 is kept"):
        loop.train(recipe, tmp_path, resume=False, observer=silent())
    kept = checkpoint.load(tmp_path / "checkpoint.pt")
    assert kept.epoch == 1
    assert all(value.isfinite().all() for value in kept.learner.values())
    assert [entry["epoch"] for entry in lines(tmp_path)] == [1]
    assert not (tmp_path / "report.json").exists()


def test_evaluation_may_be_rare_but_always_ends_the_run(
    tmp_path: Path, make_recipe: Any, silent: Any
) -> None:
    recipe = make_recipe(evaluate_every=2)
    loop.train(recipe, tmp_path, resume=False, observer=silent())
    evaluated = [entry["test_error_percent"] is not None for entry in lines(tmp_path)]
    assert evaluated == [False, True, True]


@pytest.mark.parametrize(
    "changes",
    [{"precision": "bf16"}, {"channels_last": True}, {"augment": False}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_run_changes_with_its_settings_and_stays_sound(
    tmp_path: Path, make_recipe: Any, silent: Any, changes: dict[str, Any]
) -> None:
    plain = loop.train(make_recipe(), tmp_path / "plain", resume=False, observer=silent())
    recipe = make_recipe(**changes)
    other = loop.train(recipe, tmp_path / "other", resume=False, observer=silent())
    if not recipe.channels_last:  # A matter of layout alone.
        assert other["test_loss"] != plain["test_loss"]
    assert other["test_loss"] < 20


def test_peak_memory_counts_parameters_momentum_and_activations(
    tmp_path: Path, make_recipe: Any, silent: Any
) -> None:
    recipe = make_recipe(method="bp", epochs=2)
    report = loop.train(recipe, tmp_path / "bp", resume=False, observer=silent())
    parameters = 4 * (report["backbone_parameters"] + report["auxiliary_parameters"])
    largest_map = 4 * 64 * 4 * 8 * 8
    assert report["peak_memory_source"] == "counted"
    # A block's two convolutions and two normalizations keep their inputs for the backward.
    assert report["peak_memory_bytes"] > 2 * parameters + 10 * largest_map
    bigger = make_recipe(method="bp", epochs=2, batch_size=128)
    double = loop.train(bigger, tmp_path / "big", resume=False, observer=silent())
    activations = report["peak_memory_bytes"] - 2 * parameters
    grown = double["peak_memory_bytes"] - report["peak_memory_bytes"]
    assert grown == pytest.approx(activations, rel=0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subset": 2000}, "a subset of 2000 images was asked for; expected 1 to 1437"),
        ({"held_out": 1437}, "1437 of 1437 training images were to be held out; expected fewer"),
        ({"held_out": 400, "subset": 1038}, "expected 1 to 1037"),
        ({"subset": None, "batch_size": 1438}, "batch_size is 1438"),
        ({"modules": 30, "cascade": 2}, "modules=30"),
        ({"modules": ["nope"]}, "nope"),
        ({"data": "parquet:nowhere"}, "nowhere does not exist"),
        ({"model": "torchvision/resnet18"}, "3 channels"),
    ],
)
def test_what_cannot_be_built_leaves_no_folder(
    tmp_path: Path, make_recipe: Any, silent: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        loop.train(make_recipe(**changes), tmp_path / "a" / "run", resume=False, observer=silent())
    assert list(tmp_path.iterdir()) == []


def test_a_run_may_be_tested_on_training_images_held_out(
    tmp_path: Path, make_recipe: Any, silent: Any
) -> None:
    """The same whatever the seed, and none of them is trained on."""
    recipe = make_recipe(held_out=300, subset=None)
    report = loop.train(recipe, tmp_path, resume=False, observer=silent())
    assert report["test_images"] == 300
    parts = [
        assemble(make_recipe(held_out=300, subset=None, seed=s, augment=False)) for s in (0, 1)
    ]
    trained, tested = ({digest(x) for x in _images(p)} for p in (parts[0].train, parts[0].test))
    assert len(tested) > 290
    assert not trained & tested
    assert tested == {digest(x) for x in _images(parts[1].test)}
    assert (len(parts[0].train), len(parts[0].dataset.train)) == ((1437 - 300) // 64, 1437)
    assert parts[0].data_bytes == 1437 * (64 + 8)  # one channel of 8×8, and a label
    analyzed = {digest(x) for images, _ in Subject.of_run(tmp_path).train(None) for x in images}
    assert len(analyzed) > 1100
    assert not analyzed & tested


def digest(image: Any) -> bytes:
    return bytes(image.mul(16).round().to(torch.uint8).flatten().tolist())


def _images(batches: Any) -> Any:
    for images, _ in batches.epoch(torch.Generator()):
        yield from images


def test_memory_over_a_counted_step_is_kept(tmp_path: Path, make_recipe: Any, silent: Any) -> None:
    """Its highest point is the peak that is reported, and a run that goes on keeps it."""
    report = loop.train(make_recipe(), tmp_path, resume=False, observer=silent())
    directory = RunDirectory(tmp_path)
    curve = directory.read_step_memory()
    assert max(curve) == report["peak_memory_bytes"]
    assert 100 < len(curve) <= 200
    assert min(curve) > 0
    directory.report.unlink()
    loop.train(make_recipe(), tmp_path, resume=True, observer=silent())
    assert directory.read_step_memory() == curve
    directory.step_memory.write_text("[1, -2")
    assert directory.read_step_memory() == []
