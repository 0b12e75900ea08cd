"""Presets: what is given besides them wins, wherever they are named."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from naive.rule import random_chain
from torch import nn

from hpff import LocalLearner, LocalSettings, check_gradients, models
from hpff.errors import UserError
from hpff.experiments import comparison
from hpff.presets import NAMES, PRESETS
from hpff.recipes import files

IMAGES = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def learner(**settings: Any) -> LocalLearner:
    model = random_chain(2, 6, norm=True, side=8)
    return LocalLearner(model, modules=6, example=IMAGES[:2], num_classes=4, **settings)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_its_settings_written_out(name: str) -> None:
    written = LocalSettings(modules=6, **PRESETS[name])
    assert LocalSettings(preset=name, modules=6) == written  # type: ignore[arg-type]
    assert LocalSettings.from_label(name, modules=6) == written
    assert written.with_label("bp").recompute == "never"
    assert learner(preset=name).settings == written
    assert dataclasses.replace(written, modules=7).cascade == written.cascade
    assert "preset" not in written.to_plain()


@pytest.mark.parametrize("name", NAMES)
def test_the_gradients_are_the_rules(name: str) -> None:
    assert check_gradients(learner(preset=name), IMAGES, torch.tensor([0, 1, 2, 3])) == {}


def test_what_is_given_wins_also_where_it_is_the_default() -> None:
    default = LocalSettings(modules=6)
    preset = LocalSettings(preset="accurate", modules=6)
    for key in ("method", "recompute", "auxiliary_width"):
        value = getattr(default, key)
        assert getattr(preset, key) != value
        given = LocalSettings(preset="accurate", modules=6, **{key: value})
        assert getattr(given, key) == value
        assert dataclasses.replace(given, **{key: getattr(preset, key)}) == preset
    assert LocalSettings(preset="balanced", cascade=2).cascade_stride == 1
    assert LocalSettings(preset="balanced", cascade=2, cascade_stride=2).cascade_stride == 2
    assert learner(preset="accurate", cascade=2, method="dgl").settings.method_name == "dgl"


def test_a_recipe_takes_a_preset_where_it_is_written(tmp_path: Path) -> None:
    """Over what it is based on, below what stands beside it or comes after."""
    file = tmp_path / "mine.yaml"
    file.write_text("base: demo\npreset: light\nrecompute: never\n")
    found, based_on = files.load(str(file)).local.to_plain(), files.load("demo").local.to_plain()
    wanted = LocalSettings(preset="light", recompute="never").to_plain()
    assert {key: found[key] for key in PRESETS["light"]} == {
        key: wanted[key] for key in PRESETS["light"]
    }
    assert (found["modules"], found["patch_mode"]) == (based_on["modules"], based_on["patch_mode"])
    assert found["method"] != based_on["method"]
    later = files.load(str(file), ["preset=accurate", "method.depth=3"]).local
    assert later.cascade == PRESETS["accurate"]["cascade"]
    assert later.recompute == PRESETS["accurate"]["recompute"]
    assert later.method_settings["depth"] == 3
    again = tmp_path / "again.yaml"
    again.write_text(files.dump(files.load(str(file))))
    assert files.load(str(again)) == files.load(str(file))


def test_a_preset_stands_beside_methods_in_a_comparison() -> None:
    demo = files.load("demo")
    found = comparison.recipe_for("light", demo, seed=3)
    assert found.local.preset_name() == "light"
    assert (found.seed, found.local.modules) == (3, demo.local.modules)
    assert comparison.recipe_for("bp", found, seed=0).local.preset_name() is None


def test_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    for make in (
        lambda: LocalSettings(preset="lite"),  # type: ignore[arg-type]
        lambda: learner(preset="lite"),
        lambda: files.load("demo", ["preset=lite"]),
    ):
        with pytest.raises(UserError, match=r"preset: is 'lite', expected light, .*mean light\?"):
            make()
    with pytest.raises(UserError, match="preset: is 3, expected light, balanced, accurate"):
        files.load("demo", ["preset=3"])
    file = tmp_path / "mine.yaml"
    file.write_text("base: demo\npreset: [light]\n")
    with pytest.raises(UserError, match=r"mine\.yaml: preset: is"):
        files.load(str(file))
    with pytest.raises(UserError, match="or a preset"):
        LocalSettings.from_label("heavy+++", modules=6)


def test_a_packaged_recipe_of_a_preset_has_the_published_rest() -> None:
    """And the preset's settings are all that differs from DGL's recipe."""
    found = files.load("cifar10/resnet32-k16-accurate")
    assert found.local == LocalSettings(preset="accurate", modules=16)
    published = files.load("cifar10/resnet32-k16-dgl")
    assert dataclasses.replace(found, local=published.local) == published


def test_a_learner_that_recomputes_draws_no_random_numbers_of_its_own() -> None:
    """What auxiliary networks take is measured as it is made, and here they have dropout."""
    sizes = {"img_size": 16, "patch_size": 4, "depth": 4, "proj_drop_rate": 0.5}
    model = models.create("timm/vit_tiny_patch16_224", num_classes=10, **sizes)
    drawn = []
    for recompute in ("never", "blocks"):
        torch.manual_seed(0)
        made = {"example": torch.zeros(2, 3, 16, 16), "num_classes": 10, "modules": 4}
        local = LocalLearner(model, method="auglocal", recompute=recompute, **made)
        assert any(isinstance(each, nn.Dropout) for each in local.independent_auxiliary.modules())
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)
