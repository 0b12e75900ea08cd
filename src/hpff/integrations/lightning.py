"""PyTorch Lightning: a module that trains a LocalLearner."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hpff.engine.step import Losses
from hpff.errors import UserError
from hpff.learner import LocalLearner
from hpff.methods import wrong_answers
from hpff.torch_support.model_io import call_model, logits_of
from hpff.torch_support.torchvision_import import torchvision

torchvision()  # Lightning imports it, and hpff's door to it mends one that cannot be imported.
try:
    from lightning.pytorch import LightningModule
except ImportError as missing:
    raise ImportError(
        "hpff.integrations.lightning needs the package lightning; pip install 'hpff[lightning]'"
    ) from missing


class LocalLearning(LightningModule):
    """Trains a :class:`~hpff.LocalLearner` under a Lightning ``Trainer``, on one device.

    It takes one optimizer step a batch, after every local backward. It logs ``loss`` (the weighted
    sum), ``final_loss``, ``train_error``, each level's loss by module (``independent/1``, ...), and
    in validation and tests ``val_loss``, ``val_error``, ``test_loss`` and ``test_error``; errors
    are shares of wrong answers. Checkpoints hold model, auxiliary networks and optimizer.
    Precisions are those of the Trainer: ``32-true``, ``bf16-mixed``, and ``16-mixed`` with
    Lightning's own scaler.

    Args:
        learner: what is trained.
        optimizer: given the parameters, makes the optimizer.
        scheduler: given the optimizer, makes a schedule, which is stepped after each epoch.
        log_modules: whether to log each module's losses.

    Raises:
        UserError: the Trainer has more than one process, which would need gradients reduced.
    """

    def __init__(
        self,
        learner: LocalLearner,
        optimizer: Callable[[Iterable[torch.nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        *,
        log_modules: bool = True,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.learner = learner
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        self._log_modules = log_modules

    def unpack(self, batch: Any) -> tuple[Any, Tensor]:
        """The model's inputs and the targets in a batch of ``(inputs, targets)``.

        Override it for batches of another form.

        Returns:
            What the model takes (a tensor, or a tuple or dict of forward's arguments), and the
            targets (B,).
        """
        inputs, targets = batch
        return inputs, targets

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model itself."""
        return self.learner(*args, **kwargs)

    def configure_optimizers(self) -> Any:
        """The optimizer, and its schedule."""
        optimizer = self._make_optimizer(self.learner.parameters())
        if self._make_scheduler is None:
            return optimizer
        return [optimizer], [self._make_scheduler(optimizer)]

    def on_fit_start(self) -> None:
        """Refuse more than one process.

        Raises:
            UserError: the Trainer has more than one.
        """
        if self.trainer.world_size > 1:
            raise UserError(
                f"the Trainer has {self.trainer.world_size} processes; LocalLearning trains on "
                "one device: expected devices=1"
            )

    def training_step(self, batch: Any, batch_index: int) -> None:
        """All local backwards, and a step."""
        inputs, targets = self.unpack(batch)
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        losses = self.learner.backward(inputs, targets, scale=self._scale())
        optimizer.step()
        self._log_training(losses, targets)

    def on_train_epoch_end(self) -> None:
        """Step the schedule."""
        if self._make_scheduler is not None:
            scheduler: Any = self.lr_schedulers()
            scheduler.step()

    def validation_step(self, batch: Any, batch_index: int) -> None:
        """Loss and error of the model."""
        self._log_score("val", batch)

    def test_step(self, batch: Any, batch_index: int) -> None:
        """Loss and error of the model."""
        self._log_score("test", batch)

    def _scale(self) -> float | Tensor:
        """What Lightning's scaler, if there is one, divides gradients by before it steps."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is None:
            return 1.0
        scale: Tensor = scaler.scale(torch.ones((), device=self.device))
        return scale

    def _log_training(self, losses: Losses, targets: Tensor) -> None:
        count = len(targets)
        self.log("loss", losses.total.detach(), prog_bar=True, batch_size=count)
        self.log("final_loss", losses.final.detach(), batch_size=count)
        self.log("train_error", self._error(losses.logits, targets), batch_size=count)
        if not self._log_modules:
            return
        for level in ("independent", "cascade"):
            for module, loss in enumerate(getattr(losses, level), 1):
                self.log(f"{level}/{module}", loss.detach(), batch_size=count)

    def _log_score(self, name: str, batch: Any) -> None:
        inputs, targets = self.unpack(batch)
        logits = logits_of(call_model(self.learner, inputs))
        loss = self.learner.criterion(logits, targets)
        self.log(f"{name}_loss", loss, prog_bar=True, batch_size=len(targets))
        error = self._error(logits, targets)
        self.log(f"{name}_error", error, prog_bar=True, batch_size=len(targets))

    def _error(self, logits: Tensor, targets: Tensor) -> Tensor:
        wrong, answers = wrong_answers(logits, targets, self.learner.ignore_index)
        return wrong / answers.clamp(min=1)
