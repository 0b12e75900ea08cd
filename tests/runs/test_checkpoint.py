from __future__ import annotations

import dataclasses
import io
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PLAIN, Silent
from platforms import posix_only

from hpff.errors import UserError
from hpff.recipes import recipe as recipes
from hpff.runs import checkpoint, digests
from hpff.runs.checkpoint import Checkpoint
from hpff.training import loop

METRICS: dict[str, Any] = {
    **dict.fromkeys(("rate", "loss", "final_loss", "images_per_second", "step_seconds"), 0.5),
    **dict.fromkeys(("train_error_percent", "seconds"), 0.5),
    **dict.fromkeys(("test_loss", "test_error_percent", "test_top5_error_percent")),
    "independent_losses": [0.5, 0.25],
    "cascade_losses": [],
    **dict.fromkeys(("broken_images", "timed_steps", "peak_memory_bytes"), 1),
    "peak_memory_source": "counted",
}


def example(epoch: int = 1) -> Checkpoint:
    return Checkpoint(
        recipe={"optimizer": {"lr": 0.1}, "modules": ["a", "b"]},
        data={"name": "digits"},
        epoch=epoch,
        learner={"weight": torch.full((1000,), float(epoch))},
        optimizers=[
            {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 1}]}
        ],
        random=checkpoint.random_state(),
        history=[{**METRICS, "epoch": number} for number in range(1, epoch + 1)],
    )


def seal(path: Path, content: Any, **settings: Any) -> None:
    """Write any content as a checkpoint whose digest is right."""
    archive = io.BytesIO()
    torch.save(content, archive, **settings)
    digests.seal_archive(archive)
    path.write_bytes(archive.getvalue())


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


def test_any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, example())
    content = bytearray(path.read_bytes())
    for place in range(0, len(content), 97):
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        with pytest.raises(UserError, match="is truncated, damaged"):
            checkpoint.load(path)
        content[place] ^= 1 << place % 8
    path.write_bytes(content)
    assert checkpoint.load(path).epoch == 1


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
    seal(path, content, pickle_protocol=protocol)
    message = "holds a pickle that could run code" if protocol == 2 else "nothing in it was run"
    with pytest.raises(UserError, match=message):
        checkpoint.load(path)
    torch.save(content, path, pickle_protocol=protocol)
    with pytest.raises(UserError, match="nothing in it was run"):
        checkpoint.load(path)
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(UserError, match="nothing in it was run"):
        checkpoint.load(path)
    assert not Path("evil").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, "is not a checkpoint of this hpff"),
        ([1, 2], "is not a checkpoint of this hpff"),
        (torch.ones(3), "is not a checkpoint of this hpff"),
        ({"format": "hpff checkpoint 1", "epoch": 1}, "is not a checkpoint of this hpff"),
        ({"format": checkpoint.FORMAT, "epoch": 1}, "is not a whole checkpoint"),
    ],
)
def test_another_programs_file_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match="of another program"):
        checkpoint.load(path)
    seal(path, content)
    with pytest.raises(UserError, match=message):
        checkpoint.load(path)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        checkpoint.load(tmp_path / "checkpoint.pt")


def changed(entry: dict[str, Any], **change: Any) -> dict[str, Any]:
    return {**entry, **change}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": 3}, "recipe is not a recipe"),
        ({"data": {"name": 3}}, "data is not a name"),
        ({"epoch": "two"}, "epoch is not a whole number"),
        ({"epoch": 0}, "epoch is not a whole number"),
        ({"epoch": True}, "epoch is not a whole number"),
        ({"epoch": 10**9}, "it says epoch 1000000000, and has the metrics of 1"),
        ({"learner": [1]}, "learner is not a mapping"),
        ({"learner": {"weight": 3}}, "learner is not a mapping"),
        ({"optimizers": 3}, "optimizers is not a list"),
        ({"optimizers": [{"state": {}}]}, "optimizers is not a list"),
        ({"optimizers": [{"state": {"a": {}}, "param_groups": []}]}, "optimizers is not a list"),
        ({"random": {}}, "random is not states"),
        ({"random": {"cpu": torch.ones(3), "cuda": []}}, "random is not states"),
        ({"random": {"cpu": torch.get_rng_state(), "cuda": 3}}, "random is not states"),
        ({"history": []}, "has the metrics of 0"),
        ({"history": {}}, "history is not a list"),
        ({"history": [3]}, "metrics of epoch 1 are no mapping"),
        ({"history": [{}]}, "metrics of epoch 1 have no sound epoch"),
        ({"history": [changed(METRICS, epoch=2)]}, "metrics of epoch 1 are of another epoch"),
        ({"history": [changed(METRICS, epoch=1, loss="x")]}, "no sound loss"),
        ({"history": [changed(METRICS, epoch=1, seconds=float("nan"))]}, "no sound seconds"),
        ({"history": [changed(METRICS, epoch=1, test_error_percent=101)]}, "no sound test_error"),
        ({"history": [changed(METRICS, epoch=1, cascade_losses=[None])]}, "no sound cascade"),
        ({"history": [changed(METRICS, epoch=1, more={})]}, "no sound more"),
    ],
)
def test_what_no_checkpoint_holds_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, dataclasses.replace(example(), **change))
    with pytest.raises(UserError, match=rf"is not a sound checkpoint \(.*{message}") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


def with_buffer(state: dict[str, Any], value: Any) -> list[Any]:
    """The optimizers of a checkpoint, the first with another value for its first parameter."""
    first, *others = state["optimizers"]
    return [{**first, "state": {**first["state"], 0: {"momentum_buffer": value}}}, *others]


def with_weight(state: dict[str, Any], change: Any) -> dict[str, Any]:
    name = next(iter(state["learner"]))
    return {**state["learner"], name: change(state["learner"][name])}


@pytest.fixture(scope="module")
def first_epoch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that was interrupted in its second epoch, to be copied."""
    folder = tmp_path_factory.mktemp("first_epoch") / "run"
    with pytest.raises(KeyboardInterrupt):
        loop.train(recipes.parse(PLAIN, "tiny"), folder, resume=False, observer=Silent(3))
    return folder


@pytest.fixture
def run(tmp_path: Path, first_epoch: Path) -> Path:
    return shutil.copytree(first_epoch, tmp_path / "run")


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("recipe", lambda state: {"model": "resnet32"}, "is of another recipe"),
        ("learner", lambda state: {"weight": torch.ones(3)}, "is missing"),
        ("learner", lambda state: with_weight(state, lambda w: w * torch.inf), "not finite"),
        ("learner", lambda state: with_weight(state, lambda w: w.double()), "is float64"),
        ("learner", lambda state: with_weight(state, lambda w: w[:1]), "of shape"),
        ("learner", lambda state: {**state["learner"], "x": torch.ones(1)}, "x is unknown"),
        ("optimizers", lambda state: [], "0 optimizer states for 3 optimizers"),
        ("optimizers", lambda state: with_buffer(state, torch.ones(3)), "momentum_buffer is"),
        ("optimizers", lambda state: with_buffer(state, 3), "momentum_buffer is no tensor"),
        (
            "optimizers",
            lambda state: with_buffer(
                state, state["optimizers"][0]["state"][0]["momentum_buffer"] * torch.nan
            ),
            "momentum_buffer has numbers that are not finite",
        ),
        (
            "optimizers",
            lambda state: [
                {**one, "param_groups": [{**one["param_groups"][0], "momentum": 0.5}]}
                for one in state["optimizers"]
            ],
            "settings are others",
        ),
        (
            "optimizers",
            lambda state: [{**one, "state": {10**6: {}}} for one in state["optimizers"]],
            "of other parameters",
        ),
        ("random", lambda state: {"cpu": torch.ones(3).byte(), "cuda": []}, "does not fit"),
        ("data", lambda state: {**state["data"], "classes": ["a"]}, r"classes \(a, now 0, 1"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    run: Path, make_recipe: Any, silent: Any, key: str, change: Any, message: str
) -> None:
    path = run / "checkpoint.pt"
    state = checkpoint.load(path)
    checkpoint.save(path, dataclasses.replace(state, **{key: change(vars(state))}))
    before = path.read_bytes()
    with pytest.raises(UserError, match=message) as caught:
        loop.train(make_recipe(), run, resume=True, observer=silent())
    assert str(run) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_more_epochs_than_the_recipe_has_are_refused(
    run: Path, make_recipe: Any, silent: Any
) -> None:
    path = run / "checkpoint.pt"
    state = checkpoint.load(path)
    history = [{**state.history[0], "epoch": number} for number in range(1, 6)]
    checkpoint.save(path, dataclasses.replace(state, epoch=5, history=history))
    with pytest.raises(UserError, match="5 epochs are done of 3"):
        loop.train(make_recipe(), run, resume=True, observer=silent())


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
