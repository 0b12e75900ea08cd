"""The TensorBoard log of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from hpff.errors import UserError

_SCALARS = {
    "rate": "rate",
    "loss": "loss/total",
    "final_loss": "loss/final",
    "test_loss": "loss/test",
    "train_error_percent": "error/train",
    "test_error_percent": "error/test",
    "images_per_second": "speed/images_per_second",
    "step_seconds": "speed/step_seconds",
    "peak_memory_bytes": "memory/peak_bytes",
}


class Board:
    """Writes an epoch's metrics; hides what an earlier process wrote from `first_epoch` on."""

    def __init__(self, path: Path, first_epoch: int) -> None:
        self._path = path
        with self._disk_errors():
            self._writer = SummaryWriter(str(path), purge_step=first_epoch)

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Log one epoch; raises UserError if the disk takes no more."""
        epoch = metrics["epoch"]
        values = {tag: metrics[key] for key, tag in _SCALARS.items() if metrics[key] is not None}
        for level in ("independent", "cascade"):
            for module, loss in enumerate(metrics[f"{level}_losses"], 1):
                values[f"{level}/{module}"] = loss
        with self._disk_errors():
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, epoch)
            self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        with self._disk_errors():
            self._writer.close()

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot write the TensorBoard log ({error.strerror}); make room, "
                "then --resume"
            ) from error
