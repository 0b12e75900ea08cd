"""The recipes for segmentation against facts typed from the supplement and InfoPro's code."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from hpff import LocalLearner, data, models
from hpff.auxiliary import dense_head
from hpff.cutting.published_cuts import published_cuts
from hpff.cutting.units import Unit
from hpff.data import PairAugmentation
from hpff.errors import UserError
from hpff.experiments import provenance
from hpff.experiments.reproduction import Scale
from hpff.recipes import files as recipe_files
from hpff.training.inference import MULTI_SCALE
from hpff.training.rate import rate

ALL = yaml.safe_load((Path(__file__).parents[1] / "published_facts.yaml").read_text())
FACTS: dict[str, Any] = ALL["cityscapes"]
CITYSCAPES = [n for n, _ in recipe_files.names() if n.startswith("cityscapes/")]
CAMVID = [n for n, _ in recipe_files.names() if n.startswith("camvid/")]
LEVELS = {"bp": (True, 1, 1), "infopro": (True, 1, 1), "dgl": (True, 1, 1), "hpff": (True, 2, 2)}


@pytest.mark.parametrize("name", CITYSCAPES)
def test_the_cityscapes_recipes_are_the_published_ones(name: str) -> None:
    recipe = recipe_files.load(name)
    assert (recipe.model.name, recipe.data) == (FACTS["model"], "cityscapes")
    assert list(recipe.crop_size or ()) == FACTS["crop"]
    assert (recipe.batch_size, recipe.iterations) == (FACTS["batch_size"], FACTS["iterations"])
    optimizer = recipe.to_plain()["optimizer"]
    assert optimizer == {"lr": FACTS["rate"], "name": "sgd", **FACTS["sgd"]}
    assert recipe.schedule.name == "poly"
    assert (recipe.schedule.power, recipe.schedule.last_lr) == tuple(FACTS["poly"].values())
    local = recipe.local
    assert (local.independent, local.cascade, local.patches) == LEVELS[name.rpartition("-")[2]]
    if not local.is_backprop:
        assert local.modules == FACTS["modules"]
        method = local.create_method()
        assert method.reconstruction == (FACTS["lambdas"][0],) * 2
        assert method.classification == (FACTS["lambdas"][1],) * 2
        assert method.dropout == FACTS["dropout"]


@pytest.mark.parametrize("name", CAMVID)
def test_the_camvid_recipes_differ_in_their_method_alone(name: str) -> None:
    recipe = recipe_files.load(name).to_plain()
    first = recipe_files.load(CAMVID[0]).to_plain()
    for key in ("method", "modules", "cascade", "patches"):
        recipe.pop(key), first.pop(key)
    assert recipe == first
    method = recipe_files.load(name).local.label()
    assert name.replace("-k4", "").removeprefix("camvid/fcn_resnet20-").replace("-", "+") == method


@pytest.mark.parametrize("name", [*CITYSCAPES, *CAMVID])
def test_every_setting_has_a_source(name: str) -> None:
    recipe = recipe_files.load(name)
    found = provenance.settings(name, recipe, recipe)
    assert [key for key, setting in found.items() if not setting.source] == []


def test_the_poly_rate() -> None:
    """After half of the steps (0.01 - 0.0001) · 0.5^0.9 + 0.0001."""
    recipe = recipe_files.load(CITYSCAPES[0])
    given = recipe.epochs, recipe.optimizer, recipe.schedule
    assert rate(1, *given) == pytest.approx(0.01)
    assert rate(recipe.epochs // 2 + 1, *given) == pytest.approx(0.0099 * 0.5**0.9 + 1e-4)
    assert rate(recipe.epochs // 2, *given, 1.0) == rate(recipe.epochs // 2 + 1, *given)
    assert rate(recipe.epochs, *given, 1.0) == pytest.approx(1e-4)


def test_the_published_augmentation_and_tests() -> None:
    found = data.blank("cityscapes")
    augmentation = found.augmentation
    assert isinstance(augmentation, PairAugmentation)
    assert list(augmentation.scale) == FACTS["augmentation"]["scale"]
    assert augmentation.share == FACTS["augmentation"]["share"]
    assert (augmentation.flip, augmentation.jitter) == (True, True)
    assert [255 * value for value in found.mean] == pytest.approx(FACTS["mean"])
    assert [255 * value for value in found.std] == pytest.approx(FACTS["std"])
    assert list(MULTI_SCALE) == FACTS["scales"]


@pytest.mark.parametrize("name", ["cityscapes", "camvid"])
def test_the_published_data_sets(name: str) -> None:
    facts, found = ALL[name], data.blank(name)
    assert (found.num_classes, found.ignore_index) == (facts["classes"], facts["ignored"])
    assert (len(found.train), len(found.test)) == (facts["train"], facts["test"])
    assert len(set(found.palette)) == found.num_classes


def test_the_cut_of_two_modules_is_infopros() -> None:
    blocks = (3, 4, 23, 3)
    names = [f"backbone.layer{s}.{b}" for s, length in enumerate(blocks, 1) for b in range(length)]
    units: list[Any] = [
        Unit("backbone.conv1", (1,), None),
        *(Unit(name, (1,), name) for name in names),  # type: ignore[arg-type]
    ]
    assert published_cuts(units, 2) == [f"backbone.layer{FACTS['cut_k2']}"]
    assert published_cuts(units, 4) == [f"backbone.layer{b}" for b in ("3.0", "3.9", "3.17")]


def test_the_published_head() -> None:
    layers = list(dense_head(FACTS["head"]["channels"], FACTS["classes"], dropout=0.1))
    first, last = layers[0], layers[-1]
    assert isinstance(first, nn.Conv2d)
    assert (first.out_channels, first.kernel_size, first.bias) == (
        FACTS["head"]["hidden"],
        (3, 3),
        None,
    )
    assert [type(layer).__name__ for layer in layers[1:4]] == ["BatchNorm2d", "ReLU", "Dropout2d"]
    assert isinstance(last, nn.Conv2d)
    assert (last.kernel_size, last.out_channels) == ((1, 1), FACTS["classes"])
    default = inspect.signature(LocalLearner).parameters["own_head_weight"].default
    assert default == FACTS["own_head_weight"]


def test_fewer_epochs_of_a_table_are_fewer_iterations() -> None:
    recipe = Scale(epochs=2).apply(CITYSCAPES[0], None)
    assert (recipe.epochs, recipe.iterations) == (2, 1000)


FAULTS = [
    (["model=resnet32"], "model: is resnet32, which classifies images, but cityscapes is for segm"),
    (["iterations=39999"], "iterations: is 39999, expected a multiple of epochs"),
    (["crop_size=[512]"], "crop_size: has 1 sides, expected height and width"),
    (["image_size=224"], "image_size: is for classification, expected null"),
    (["schedule.power=0"], "schedule.power: is 0, expected a number above 0"),
    (
        ["data=cifar10"],
        "model: is torchvision/deeplabv3_resnet101, which classifies pixels, but cif",
    ),
    (["data=digits", "model=resnet20"], "crop_size: is for segmentation, and digits for classific"),
]


@pytest.mark.parametrize(("overrides", "message"), FAULTS)
def test_what_does_not_fit_is_said(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("+", r"\+")):
        recipe_files.load(CITYSCAPES[0], overrides)


def test_dense_models_are_known() -> None:
    assert models.is_dense("torchvision/fcn_resnet50")
    assert models.is_dense("deeplabv3_resnet101")
    assert models.is_dense("fcn_resnet20")
    assert not models.is_dense("torchvision/resnet50")
    assert not models.is_dense("resnet20")
