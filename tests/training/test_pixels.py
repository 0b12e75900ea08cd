"""mIoU, inference at several scales and by windows, and a run from recipe to model card."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import confusion_matrix
from small_pairs import write_folder
from torch import Tensor, nn

from hpff import data, models
from hpff.cli import main
from hpff.errors import UserError
from hpff.models.pretrained import load_backbone
from hpff.recipes import recipe as recipes
from hpff.runs.finished_run import FinishedRun
from hpff.training.dry_run import rehearse
from hpff.training.evaluation import pixel_score
from hpff.training.inference import MULTI_SCALE, Inference
from hpff.training.pixel_scores import Confusion

VOID = 255


def test_scores_of_a_known_confusion() -> None:
    """Class 0: 2 right of 3, one answered as 1. Class 1: 1 of 1. Class 2 occurs nowhere."""
    confusion = Confusion(3, VOID)
    confusion.add(torch.tensor([[[0, 0], [1, 1]]]), torch.tensor([[[0, 0], [0, 1]]]))
    confusion.add(torch.tensor([[[2, 2]]]), torch.tensor([[[VOID, VOID]]]))
    found = confusion.scores()
    assert found.class_iou == (pytest.approx(200 / 3), 50.0, None)
    assert found.class_accuracy == (pytest.approx(200 / 3), 100.0, None)
    assert found.miou == pytest.approx((200 / 3 + 50) / 2)
    assert found.error == 25.0


def test_scores_are_those_of_a_naive_count() -> None:
    truth, answers = torch.randint(0, 5, (2, 3, 20, 30)).unbind()
    truth[torch.rand(truth.shape) < 0.2] = VOID
    confusion = Confusion(5, VOID)
    for one, other in zip(answers, truth, strict=True):
        confusion.add(one[None], other[None])
    counted = truth != VOID
    oracle = confusion_matrix(truth[counted], answers[counted], labels=range(5))
    assert confusion.counts.tolist() == oracle.tolist()
    expected = []
    for label in range(5):
        a, b = (answers == label) & counted, truth == label
        expected.append(100 * float((a & b).sum()) / float((a | b).sum()))
    assert confusion.scores().class_iou == tuple(pytest.approx(value) for value in expected)
    wrong = float(((answers != truth) & counted).sum() / counted.sum())
    assert confusion.scores().error == pytest.approx(100 * wrong)


class Local(nn.Module):
    """Scores that depend on each pixel alone."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": torch.cat([images, images.square()], 1), "aux": images}


def test_windows_of_a_pixelwise_model_change_nothing() -> None:
    images = torch.randn(2, 3, 17, 23)
    whole = Inference().scores(Local(), images)
    for window in ((6, 9), (17, 23), (40, 5)):
        assert torch.allclose(Inference(window=window).scores(Local(), images), whole, atol=1e-6)


def test_several_views_are_averaged() -> None:
    images = torch.randn(1, 3, 16, 24)
    model = nn.Conv2d(3, 4, 3, padding=1)
    with torch.no_grad():
        found = Inference((0.5, 1.0), flip=True).scores(model, images)
        shares = []
        for scale in (0.5, 1.0):
            scaled = F.interpolate(images, scale_factor=scale, mode="bilinear")
            for flipped in (False, True):
                scores = model(scaled.flip(3) if flipped else scaled)
                scores = F.interpolate(scores, (16, 24), mode="bilinear")
                shares.append((scores.flip(3) if flipped else scores).softmax(1))
    assert torch.allclose(found, torch.stack(shares).mean(0), atol=1e-6)
    assert str(Inference(MULTI_SCALE, flip=True)).startswith("scales 0.5, 0.75, 1, 1.25, 1.5, 1.75")
    with pytest.raises(UserError, match=r"scales are \[0.0\]"):
        Inference((0.0,))


class Oracle(nn.Module):
    """Knows the labels of the small pictures by their light, and gives small maps."""

    def forward(self, images: Tensor) -> Tensor:
        light = images.mean(1)
        return torch.stack([1.5 - light.abs(), light, -light], 1)


def test_a_perfect_model_has_full_marks(tmp_path: Path) -> None:
    found = data.load(f"pairs:{write_folder(tmp_path / 'set')}")
    batches = data.batches(
        found.test,
        found,
        batch_size=1,
        device="cpu",
        shuffle=False,
        augment=False,
        drop_last=False,
        workers=0,
    )
    model = Oracle().train()
    score = pixel_score(model, batches, found, "fp32")
    assert (score.miou, score.error, score.images) == (100.0, 0.0, 3)
    assert model.training


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the command line on small pictures."""
    root = tmp_path_factory.mktemp("runs")
    write_folder(root / "set")
    torch.manual_seed(0)
    overrides = [
        f"data=pairs:{root / 'set'}",
        *("crop_size=[32,48]", "iterations=24", "epochs=2", "batch_size=4", "modules=3"),
        *("model={name: fcn_resnet20, width: 4}", "evaluate_every=1"),
    ]
    code = main(
        ["train", "camvid/fcn_resnet20-k4-dgl-hpff", *overrides, "--out", str(root / "run")]
    )
    assert code == 0
    return root / "run"


def test_a_run_reports_its_miou(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [0 < line["test_miou_percent"] <= 100 for line in lines] == [True, True]
    assert report["test_miou_percent"] == lines[-1]["test_miou_percent"]
    assert lines[1]["rate"] < lines[0]["rate"]
    assert FinishedRun.read(run).is_dense


def test_evaluate_shows_each_class_and_draws(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--scales", "0.5,1", "--flip", "--pictures", str(tmp_path / "p"), "--json"]
    assert main(["evaluate", str(run), *given]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in found["classes"]] == ["0", "1", "2"]
    assert found["inference"] == "scales 0.5, 1, left-right flip, whole images"
    pictures = sorted((tmp_path / "p").iterdir())
    assert len(pictures) == 3
    with Image.open(pictures[0]) as picture:
        assert picture.size == (3 * 64 + 8, 48)
    assert main(["evaluate", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "mean, and all pixels" in shown
    report = json.loads((run / "report.json").read_text())
    assert f"{report['test_miou_percent']:.2f}" in shown


def test_options_of_the_other_task_are_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), "--match", "position"]) == 2
    assert "--match: is for models that classify images" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--window", "3"]) == 2
    assert "--window: is '3', expected two sides" in capsys.readouterr().err


def test_a_card_whose_lines_load_the_model(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    assert main(["export", str(run), str(tmp_path / "hub")]) == 0
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "pipeline_tag: image-segmentation" in card
    assert "type: mean_iou" in card
    assert "mIoU" in card
    assert "after 24 iterations" in card
    code = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "hub")
    (tmp_path / "card.py").write_text(code)
    names = runpy.run_path(str(tmp_path / "card.py"))
    expected = FinishedRun.read(run).model().state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in names["model"].state_dict().items())


def test_compare_has_a_column_of_miou(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [
        f"data=pairs:{write_folder(tmp_path / 'set')}",
        *("crop_size=[24,32]", "iterations=2", "epochs=1", "batch_size=2", "modules=3"),
        "model={name: fcn_resnet20, width: 2}",
    ]
    out = ["--methods", "bp,dgl", "--out", str(tmp_path / "out")]
    assert main(["compare", "camvid/fcn_resnet20-k4-dgl", *overrides, *out]) == 0
    table = (tmp_path / "out" / "results.md").read_text()
    assert "| method | mIoU % | pixel error % | peak memory |" in table


def small_recipe(**changes: Any) -> recipes.Recipe:
    plain = {
        "model": {"name": "fcn_resnet20", "width": 4},
        "data": "camvid",
        "crop_size": [32, 48],
        "method": "infopro",
        "modules": 3,
        "cascade": 2,
        "patches": 2,
        "epochs": 1,
        "iterations": 2,
        "batch_size": 4,
        "optimizer": {"lr": 0.1},
        "schedule": {"name": "poly"},
    }
    return recipes.parse({**plain, **changes}, "small")


def test_a_step_is_rehearsed_without_the_data() -> None:
    recipe = small_recipe(method="dgl", cascade=1, patches=1, modules=2)
    images, labels = 4 * 32 * 48 * 3 * 4, 4 * 32 * 48 * 8
    assert rehearse(recipe, steps=1) > images + labels


def test_the_backbone_takes_weights_from_a_file(tmp_path: Path) -> None:
    source = models.create("torchvision/resnet50")
    weights = {name: torch.full_like(t, 0.25) for name, t in source.state_dict().items()}
    torch.save(weights, tmp_path / "resnet50.pth")
    model = models.create("torchvision/fcn_resnet50", num_classes=3)
    load_backbone(model, tmp_path / "resnet50.pth")
    assert all(bool((p == 0.25).all()) for p in model.backbone.parameters())
    del weights["layer3.0.conv1.weight"]
    torch.save(weights, tmp_path / "less.pth")
    with pytest.raises(
        UserError, match=r"less.pth: does not fit.*layer3.0.conv1.weight is missing"
    ):
        load_backbone(model, tmp_path / "less.pth")
    torch.save(source.fc, tmp_path / "module.pth")
    with pytest.raises(UserError, match=r"module.pth: is no file of weights"):
        load_backbone(model, tmp_path / "module.pth")
    with pytest.raises(UserError, match=r"none.pth: cannot read these weights"):
        load_backbone(model, tmp_path / "none.pth")
