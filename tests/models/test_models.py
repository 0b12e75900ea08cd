"""Backbones by name, and where the published experiments cut them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hpff import models
from hpff.cutting.local_modules import Partition
from hpff.cutting.partition import partition
from hpff.errors import UserError
from hpff.memory import Workload


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("resnet32", "hpff"),
        ("resnet101", "torchvision"),
        ("vgg13_bn", "torchvision"),
        ("vit_b_16", "torchvision"),
        ("vit_tiny_patch16_224", "timm"),
        ("torchvision/resnet101", "torchvision"),
        ("timm/resnet101", "timm"),
        ("timm/resnet18.a1_in1k", "timm"),
    ],
)
def test_where_a_name_leads(name: str, library: str) -> None:
    assert models.resolve(name) == (library, name.rpartition("/")[2])


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("resnet34x", "resnet34"),
        ("vgg13bn", "vgg13_bn"),
        ("torchvision/vit_b16", "torchvision/vit_b_16"),
        ("timm/resnet101x", "timm/resnet101"),
        ("torchvison/resnet101", "`hpff list models`"),
    ],
)
def test_an_unknown_name_is_answered_with_a_guess(name: str, guess: str) -> None:
    with pytest.raises(UserError, match=f"unknown model '{name}'.*{guess}"):
        models.create(name)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("timm/resnet18", "checkpoint_path"),
        ("timm/resnet18", "pretrained"),
        ("timm/resnet18", "pretrained_cfg"),
        ("timm/resnet18", "pretrained_cfg_overlay"),
        ("timm/resnet18", "cache_dir"),
        ("timm/resnet18", "features_only"),
        ("timm/resnet18", "in_chans"),
        ("torchvision/resnet18", "weights"),
        ("torchvision/resnet18", "weights_backbone"),
        ("torchvision/resnet18", "progress"),
        ("torchvision/resnet18", "norm_layer"),
        ("resnet20", "weights"),
        ("resnet20", "depth"),
    ],
)
def test_settings_are_allowed_by_name(name: str, setting: str, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    torch.save({"foreign": torch.zeros(1)}, weights)
    with pytest.raises(UserError, match=f"'{setting}' is no setting of a model") as caught:
        models.create(name, **{setting: str(weights)})
    assert "expected one of" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tag_of_timm_is_known_or_refused() -> None:
    assert models.image_size("timm/vit_tiny_patch16_384.augreg_in21k_ft_in1k") == (3, 384, 384)
    with pytest.raises(UserError, match=r"resnet18 has no tag 'x'; expected .*a1_in1k") as caught:
        models.resolve("resnet18.x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vit_b_16", {"image_size": 32}),
        ("timm/vit_tiny_patch16_224", {"img_size": (32, 32)}),
        ("timm/swin_tiny_patch4_window7_224", {"img_size": (32, 32)}),
        ("timm/resnet18", {}),
        ("resnet101", {}),
        ("resnet32", {}),
    ],
)
def test_models_are_made_for_images_of_the_size_that_is_planned(
    name: str, settings: dict[str, object]
) -> None:
    assert models.sized(name, 32, 32) == settings
    assert models.sized(name, *models.image_size(name)[1:]) == {}
    with torch.device("meta"):
        logits = Workload(name).build()(torch.empty(2, 3, 32, 32))
    assert logits.shape == (2, 10)


def cut(name: str, modules: int, side: int = 64, **settings: object) -> Partition:
    with FakeTensorMode():
        model = models.create(name, num_classes=10, **settings)
        return partition(model, modules, torch.empty(2, 3, side, side))


# Written out by hand from the published splits: the last block of each module but the last.
BY_FOUR, BY_EIGHT = "3.0 3.9 3.17", "2.0 3.1 3.5 3.9 3.13 3.17 3.21"


@pytest.mark.parametrize(
    ("name", "count", "blocks"),
    [
        ("resnet34", 4, "2.0 3.0 3.5"),
        ("resnet101", 2, "2.0"),
        ("resnet101", 4, BY_FOUR),
        ("resnext101_32x8d", 8, BY_EIGHT),
        ("resnet152", 4, BY_FOUR),
        ("timm/resnet152", 8, BY_EIGHT),
    ],
)
def test_published_splits_for_imagenet(name: str, count: int, blocks: str) -> None:
    assert [m.cut for m in cut(name, count)[:-1]] == [f"layer{block}" for block in blocks.split()]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vit_b_16", {"image_size": 32}),
        ("timm/vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4}),
    ],
)
def test_a_transformer_in_as_many_modules_as_blocks(name: str, settings: dict[str, int]) -> None:
    model = models.create(name, num_classes=10, **settings)
    found = partition(model, 12, torch.randn(2, 3, 32, 32))
    blocks = [s for m in found for s in m.submodules if "blocks" in s or "encoder_layer" in s]
    assert len(blocks) == 12
    assert all(blocks[m.index - 1] in m.submodules for m in found)
    assert found[0].submodules[0] != blocks[0], "the embedding is with the first block"
    numbers = [m.parameters for m in found[1:-1]]
    assert len(set(numbers)) == 1
    assert len({m.output_shape for m in found[:-1]}) == 1


@pytest.mark.parametrize(("count", "most"), [(4, 4), (8, 3)])
@pytest.mark.parametrize("name", ["vgg13", "vgg13_bn"])
def test_vgg_is_cut_between_its_layers(name: str, count: int, most: int) -> None:
    found = cut(name, count)
    layers = [len([n for n in m.parameter_names if n.endswith("weight")]) for m in found]
    assert len(found) == count
    assert max(len(m.submodules) for m in found) <= most
    assert sum(m.parameters for m in found) > 100e6
    assert min(layers) >= 1


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_classifiers_on_the_side_are_left_out(name: str) -> None:
    model = models.create(name, num_classes=3, init_weights=False)
    assert not any("aux" in parameter.lower() for parameter, _ in model.named_parameters())
