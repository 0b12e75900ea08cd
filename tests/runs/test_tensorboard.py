from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hpff.errors import UserError
from hpff.runs.tensorboard import Board


def metrics(epoch: int, loss: float) -> dict[str, Any]:
    numbers = ("rate", "final_loss", "train_error_percent", "images_per_second", "step_seconds")
    return {
        **dict.fromkeys(numbers, 1.0),
        "epoch": epoch,
        "loss": loss,
        "peak_memory_bytes": 1000,
        "test_loss": None,
        "test_error_percent": None,
        "independent_losses": [0.1, 0.2],
        "cascade_losses": [],
    }


def test_going_on_hides_what_came_after(tmp_path: Path) -> None:
    for first, loss in ((1, 1.0), (3, 2.0)):
        board = Board(tmp_path / "log", first_epoch=first)
        for epoch in range(first, 5):
            board.write(metrics(epoch, loss))
        board.close()
    events = EventAccumulator(str(tmp_path / "log")).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("loss/total")]
    assert shown == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
    assert [event.value for event in events.Scalars("independent/2")] == pytest.approx([0.2] * 4)
    assert "error/test" not in events.Tags()["scalars"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    with pytest.raises(UserError, match="log: is a file, expected the folder"):
        Board(tmp_path / "log", first_epoch=1)
    with pytest.raises(UserError, match="cannot write the TensorBoard log"):
        Board(tmp_path / "gone" / "log", first_epoch=1)
