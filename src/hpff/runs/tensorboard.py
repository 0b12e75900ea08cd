"""The TensorBoard log of a run.

Written here and now. torch's SummaryWriter (with purge_step) would show the same, but writes in a
thread of its own: on a full disk that thread prints a traceback that nobody can catch, and an epoch
may be on the disk or not when a process is killed (seen with tensorboard 2.21, torch 2.13).
"""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

from hpff.errors import UserError

_SCALARS = {
    "rate": "rate",
    "loss": "loss/total",
    "final_loss": "loss/final",
    "test_loss": "loss/test",
    "train_error_percent": "error/train",
    "test_error_percent": "error/test",
    "test_top5_error_percent": "error/test_top5",
    "test_miou_percent": "miou/test",
    "broken_images": "data/broken_images",
    "images_per_second": "speed/images_per_second",
    "step_seconds": "speed/step_seconds",
    "peak_memory_bytes": "memory/peak_bytes",
}


class Board:
    """Writes an epoch's metrics; hides what an earlier process wrote from `first_epoch` on."""

    def __init__(self, folder: Path, first_epoch: int) -> None:
        self._folder = folder
        now = time.time()
        if folder.exists() and not folder.is_dir():
            raise UserError(
                f"{folder}: is a file, expected the folder of the TensorBoard log; move it away, "
                "then --resume"
            )
        with self._disk_errors():
            folder.mkdir(exist_ok=True)
            path = folder / f"events.out.tfevents.{now:.6f}.{os.getpid()}"
            self._file = path.open("ab", buffering=0)
        start = SessionLog(status=SessionLog.START)
        self._append(
            Event(wall_time=now, file_version="brain.Event:2"),
            Event(wall_time=now, step=first_epoch, session_log=start),
        )

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Log one epoch.

        Raises:
            UserError: the disk takes no more.
        """
        values = {
            tag: metrics[key] for key, tag in _SCALARS.items() if metrics.get(key) is not None
        }
        for level in ("independent", "cascade"):
            for module, loss in enumerate(metrics[f"{level}_losses"], 1):
                values[f"{level}/{module}"] = loss
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        summary = Summary(value=scalars)
        self._append(Event(wall_time=time.time(), step=metrics["epoch"], summary=summary))

    def close(self) -> None:
        """Close the file; everything is in it already."""
        self._file.close()

    def _append(self, *events: Event) -> None:
        buffer = io.BytesIO()
        writer = RecordWriter(buffer)
        for event in events:
            writer.write(event.SerializeToString())
        with self._disk_errors():
            if self._file.write(buffer.getvalue()) < buffer.tell():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._folder}: cannot write the TensorBoard log ({error.strerror}); make room, "
                "then --resume"
            ) from error
