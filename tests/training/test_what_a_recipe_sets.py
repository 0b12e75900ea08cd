"""Keys of a recipe arrive where they act."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_pairs import write_folder

from hpff.cli import main
from hpff.training.setup import assemble


def test_label_smoothing_is_in_every_loss(make_recipe: Any) -> None:
    learner = assemble(make_recipe(method="dgl", cascade=2, label_smoothing=0.2)).learner
    scores, targets = torch.randn(6, 10), torch.randint(10, (6,))
    logs = scores.log_softmax(1)
    naive = -(0.8 * logs[torch.arange(6), targets] + 0.2 * logs.mean(1)).mean()
    torch.testing.assert_close(learner.criterion(scores, targets), naive)
    torch.testing.assert_close(learner.auxiliary_networks.criterion(scores, targets), naive)


def test_label_smoothing_in_a_segmentation_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        f"data=pairs:{write_folder(tmp_path / 'set')}",
        *("crop_size=[24,32]", "iterations=2", "epochs=1", "batch_size=2", "modules=3"),
        *("model={name: fcn_resnet20, width: 2}", "label_smoothing=0.1"),
    ]
    out = tmp_path / "run"
    assert main(["train", "camvid/fcn_resnet20-k4-dgl", *given, "--out", str(out)]) == 2
    assert capsys.readouterr().err == (
        "hpff: label_smoothing: is 0.1 in a segmentation; expected 0, or data to classify\n"
    )
    assert not out.exists()
