"""A LocalLearner under Lightning's Trainer: what a plain loop gives, logged and saved."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from hpff import LocalLearner, data, models
from hpff.errors import UserError
from hpff.torch_support.torchvision_import import torchvision

torchvision()
lightning = pytest.importorskip("lightning.pytorch")

from hpff.integrations.lightning import LocalLearning  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loaders and loggers.
EPOCHS = 2


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # Else Lightning may look for a cluster.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.fixture
def learner() -> LocalLearner:
    model = models.create("resnet20", in_channels=1, width=4)
    return LocalLearner(model, modules=3, example=torch.rand(2, 1, 8, 8), num_classes=10)


@pytest.fixture(scope="module")
def loader() -> Any:
    digits = data.load("digits")
    images = digits.train.images[:128].float() / 255
    return DataLoader(TensorDataset(images, digits.train.labels[:128]), batch_size=32)


def trainer(folder: Path, **settings: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return lightning.Trainer(
        accelerator="cpu", default_root_dir=folder, **{**quiet, "max_epochs": EPOCHS, **settings}
    )


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def halved(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)


def plain_loop(learner: LocalLearner, loader: Any, dtype: torch.dtype | None) -> None:
    optimizer = sgd(learner.parameters())
    schedule = halved(optimizer)
    for _ in range(EPOCHS):
        for images, targets in loader:
            optimizer.zero_grad()
            # Lightning keeps no cast weights; the sums of their gradients are rounded otherwise.
            with torch.autocast("cpu", dtype, enabled=dtype is not None, cache_enabled=False):
                learner.backward(images, targets)
            optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", None), ("bf16-mixed", torch.bfloat16)]
)
def test_the_trainer_gives_the_bits_of_a_plain_loop(
    tmp_path: Path, learner: LocalLearner, loader: Any, precision: Any, dtype: torch.dtype | None
) -> None:
    plain = copy.deepcopy(learner)
    plain_loop(plain, loader, dtype)
    trainer(tmp_path, precision=precision).fit(LocalLearning(learner, sgd, halved), loader)
    for (name, ours), theirs in zip(
        learner.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_losses_and_errors_are_logged(tmp_path: Path, learner: LocalLearner, loader: Any) -> None:
    module = LocalLearning(learner, sgd)
    fit = trainer(tmp_path, enable_checkpointing=False)
    fit.fit(module, loader, loader)
    logged = fit.callback_metrics
    names = ["loss", "final_loss", "train_error", "val_loss", "val_error"]
    levels = [f"{level}/{j}" for level in ("independent", "cascade") for j in (1, 2)]
    assert {*names, *levels} <= logged.keys()
    (tested,) = fit.test(module, loader, verbose=False)
    learner.eval()
    with torch.no_grad():
        wrong = [(module(images).argmax(1) != targets).float() for images, targets in loader]
    assert tested["test_error"] == pytest.approx(torch.cat(wrong).mean().item())
    assert fit.global_step == EPOCHS * len(loader)


def test_a_checkpoint_goes_on_exactly(tmp_path: Path, learner: LocalLearner, loader: Any) -> None:
    whole = copy.deepcopy(learner)
    trainer(tmp_path).fit(LocalLearning(whole, sgd, halved), loader)
    first = trainer(tmp_path, max_epochs=1)
    first.fit(LocalLearning(learner, sgd, halved), loader)
    first.save_checkpoint(tmp_path / "cut.ckpt", weights_only=False)
    other = models.create("resnet20", in_channels=1, width=4)
    fresh = LocalLearner(other, modules=3, example=torch.rand(2, 1, 8, 8), num_classes=10)
    going_on = LocalLearning(fresh, sgd, halved)
    trainer(tmp_path).fit(going_on, loader, ckpt_path=tmp_path / "cut.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name


def test_a_loss_scaler_changes_the_scale_alone(
    tmp_path: Path, learner: LocalLearner, loader: Any
) -> None:
    """A scale of 1024 in float32 is exact: it is a power of two."""
    plain = copy.deepcopy(learner)
    trainer(tmp_path).fit(LocalLearning(plain, sgd), loader)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plugin = lightning.plugins.MixedPrecision("16-mixed", "cpu", scaler)
    plugin.forward_context = lambda: torch.autocast("cpu", enabled=False)
    trainer(tmp_path, plugins=[plugin]).fit(LocalLearning(learner, sgd), loader)
    for (name, ours), theirs in zip(
        learner.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_several_processes_are_refused(
    tmp_path: Path, learner: LocalLearner, loader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lightning.Trainer, "world_size", 2)
    with pytest.raises(UserError, match="the Trainer has 2 processes"):
        trainer(tmp_path).fit(LocalLearning(learner, sgd), loader)
