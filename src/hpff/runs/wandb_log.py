"""A run's metrics in Weights & Biases, where that is installed and asked for."""

from __future__ import annotations

import importlib
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpff.errors import UserError
from hpff.recipes.recipe import Recipe
from hpff.runs import digests
from hpff.runs.atomic_files import write_atomically
from hpff.runs.metrics_table import flat
from hpff.runs.observer import Observer

_ID = "wandb_id.json"


class WandbLog:
    """Hands what it hears on to another observer, and every epoch to a W&B project.

    A run that goes on is the same run there: its id is kept in the run's folder. W&B's own
    settings, such as WANDB_MODE=offline, apply.

    Raises:
        UserError: wandb is not installed, the project has no name, or W&B cannot be reached as it
            is set up.
    """

    def __init__(self, observer: Observer, project: str) -> None:
        self._observer = observer
        self._project = project
        self._epochs_left = 0
        if not project.strip():
            raise UserError("--wandb: is empty, expected the name of a W&B project")
        try:
            self._wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise UserError(
                "--wandb: the package wandb is not installed; install it (pip install "
                "'hpff[wandb]'), or leave out --wandb (TensorBoard and metrics.csv are always "
                "written)"
            ) from error
        self._run: Any = None

    def started(self, recipe: Recipe, path: Path, epochs_done: int) -> None:
        """Open the run there; what a failure leaves behind is deleted."""
        before = set(path.iterdir())
        identity = _identity(path, new=epochs_done == 0)
        try:
            self._run = self._wandb.init(
                project=self._project,
                name=str(path),
                id=identity,
                resume="allow",
                dir=str(path),
                config=recipe.to_plain(),
                settings=self._wandb.Settings(console="off"),
            )
        except self._wandb.Error as error:
            for entry in {path / "wandb", path / _ID} - before:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
            reason = " ".join(str(error).split())
            raise UserError(
                f"--wandb: cannot open a run ({reason}); log in by `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from error
        self._epochs_left = recipe.epochs - epochs_done
        self._observer.started(recipe, path, epochs_done)

    def stepped(self, step: int, steps: int, loss: float | None) -> None:
        """Steps go to the other observer alone."""
        self._observer.stepped(step, steps, loss)

    def epoch_done(self, metrics: Mapping[str, Any]) -> None:
        """Log the epoch's numbers."""
        numbers = {key: value for key, value in flat(metrics).items() if value is not None}
        self._run.log(numbers, step=metrics["epoch"])
        self._epochs_left -= 1
        self._observer.epoch_done(metrics)

    def close(self) -> None:
        """End the run there, as failed if epochs are missing."""
        if self._run is not None:
            self._run.finish(exit_code=int(self._epochs_left > 0))


def _identity(path: Path, *, new: bool) -> str:
    file = path / _ID
    if new or not file.exists():
        content = digests.seal_json({"id": uuid.uuid4().hex})
        write_atomically(file, digests.json_text(content))
    try:
        return str(digests.open_json(file.read_bytes())["id"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{file}: is not the id of a W&B run; delete it to go on as a new run there"
        ) from error
