"""Methods: DGL's networks, and a method of one's own in a few lines."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from naive.rule import random_chain
from torch import Tensor, nn

from hpff import LocalLearner, check_gradients, methods, models
from hpff.auxiliary import ConvMLP, cut
from hpff.errors import UserError
from hpff.methods import DGL, Method, Place
from hpff.models.cifar_resnet import BasicBlock


@pytest.mark.parametrize(("channels", "parameters"), [(16, 9_962), (32, 37_834), (64, 147_338)])
def test_auxiliary_network_has_the_published_size(channels: int, parameters: int) -> None:
    """AugLocal's DGL baseline for CIFAR ResNets, counted by running its code."""
    network = ConvMLP(channels, 10)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_dgls_own_code_has_three_hidden_layers_with_bias() -> None:
    place = Place(1, 4, "independent", (16, 8, 8), (3, 32, 32), (), 10, 1, F.cross_entropy)
    network = DGL(hidden_layers=3, hidden_bias=True).auxiliary(place)
    assert isinstance(network, ConvMLP)
    hidden = [layer.linear for layer in network.hidden]
    assert [layer.weight.shape for layer in hidden] == [(64, 64)] * 3
    assert all(layer.bias is not None for layer in hidden)


@pytest.mark.parametrize(
    ("n", "side"), [(n, n * size) for n in (1, 2, 5) for size in (1, 2, 3, 5, 7, 8, 10, 16)]
)
def test_reading_the_whole_and_cutting_equals_reading_each_patch(n: int, side: int) -> None:
    features = torch.randn(2, 3, side, side, dtype=torch.float64)
    read = cut(DGL().read(features, n), n)
    each = cut(features, n)
    for position in range(n * n):
        torch.testing.assert_close(read[:, position], DGL().read(each[:, position], 1))


REPOSITORY = Path(__file__).resolve().parents[2]


class Squares(Method):
    """A method that exists nowhere else: predict one-hot labels by least squares."""

    def auxiliary(self, place: Place) -> nn.Module:
        return nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.BatchNorm1d(place.features[0]),
            nn.Linear(place.features[0], place.num_classes),
        )

    def loss(self, outputs: Tensor, targets: Tensor, place: Place) -> Tensor:
        wanted = F.one_hot(targets, outputs.shape[1])
        return (outputs - wanted).square().mean()


@pytest.mark.parametrize("patch_mode", ["together", "one-by-one"])
def test_a_method_of_ones_own(patch_mode: str) -> None:
    model = random_chain(0, 4, norm=True, side=8)
    images, targets = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randint(4, (4,))
    learner = LocalLearner(
        model,
        modules=4,
        example=images,
        num_classes=4,
        method=Squares(),
        cascade=3,
        patch_mode=patch_mode,
    )
    assert check_gradients(learner, images, targets) == {}


class Overwriting(Method):
    """Its network begins with operations in place, and takes images too."""

    needs_images = True

    class Network(nn.Module):
        def __init__(self, place: Place) -> None:
            super().__init__()
            self.relu = nn.ReLU(inplace=True)
            self.drop = nn.Dropout(0.0, inplace=True)
            self.classifier = nn.Linear(place.features[0] + 3, place.num_classes)

        def forward(self, maps: Tensor, images: Tensor) -> Tensor:
            both = (self.drop(self.relu(maps)).mean((2, 3)), images.mul_(2).mean((2, 3)))
            return self.classifier(torch.cat(both, 1))

    def auxiliary(self, place: Place) -> nn.Module:
        return self.Network(place)


@pytest.mark.parametrize(
    ("patches", "patch_mode"), [(1, "auto"), (2, "together"), (2, "one-by-one")]
)
def test_networks_that_overwrite_their_input(patches: int, patch_mode: str) -> None:
    model = random_chain(0, 4, norm=True, side=8)
    images, targets = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randint(4, (4,))
    learner = LocalLearner(
        model,
        modules=3,
        example=images[:2],
        num_classes=4,
        method=Overwriting(),
        patches=patches,
        patch_mode=patch_mode,
    )
    before = images.clone()
    assert check_gradients(learner, images, targets) == {}
    assert torch.equal(images, before)
    learner.backward(images, targets)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_layers": -1}, "expected 0 or more"),
        ({"hidden_layers": 1.5}, "expected a whole number"),
        ({"hidden_bias": "yes"}, "expected true or false"),
        ({"depth": 3}, "has no setting 'depth'"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        methods.create("dgl", **settings)


def test_names_list_every_method() -> None:
    assert [name for name, _ in methods.names()] == ["bp", "dgl", "predsim", "infopro", "auglocal"]
    assert all(description for _, description in methods.names())


def auglocal_blocks(module: int, modules: int, following: list[int], channels: int) -> list[int]:
    shapes = tuple((width, 8, 8) for width in following)
    place = Place(
        module, modules, "independent", (channels, 8, 8), (), shapes, 10, 1, F.cross_entropy
    )
    network = methods.create("auglocal", depth=4).auxiliary(place)
    return [layer.conv2.out_channels for layer in network if isinstance(layer, BasicBlock)]


def test_published_depths_of_auglocal() -> None:
    depths = {"resnet32": 2, "resnet110": 3, "timm/resnet34": 4}
    for network, depth in depths.items():
        found = methods.published("auglocal", network=network, data="cifar10", modules=16)
        assert found == {"depth": depth}
    assert methods.published("auglocal", network="resnet20", data="cifar10", modules=10) == {}
    assert methods.published("dgl", network="resnet32", data="cifar10", modules=16) == {}


def test_auglocal_chooses_evenly_from_the_rest_and_shrinks() -> None:
    widths = [16] * 5 + [32] * 5 + [64] * 5
    # Of the 15 blocks that follow, the 4th, 8th (7.5, half to even), 11th and 15th.
    assert auglocal_blocks(1, 16, widths, 16) == [16, 32, 64, 64]
    assert [len(auglocal_blocks(j, 16, widths[j - 1 :], 16)) for j in (1, 8, 15)] == [4, 3, 1]
    assert auglocal_blocks(15, 16, [64], 64) == [64]


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_auglocal_is_exact(k: int, n: int) -> None:
    images, targets = torch.rand(6, 3, 16, 16, dtype=torch.float64), torch.arange(6)
    learner = LocalLearner(
        models.create("resnet20", width=4).double(),
        modules=5,
        example=images[:2],
        num_classes=10,
        method="auglocal",
        cascade=k,
        patches=n,
    )
    assert check_gradients(learner, images, targets) == {}


def test_auglocal_gradcheck() -> None:
    shapes = ((4, 4, 4), (6, 2, 2))
    place = Place(1, 3, "independent", (4, 4, 4), (), shapes, 3, 1, F.cross_entropy)
    method = methods.create("auglocal")
    network = method.auxiliary(place).double()
    maps = torch.randn(5, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 2, 1, 1, 2])
    assert torch.autograd.gradcheck(
        lambda x: method.loss(network(x), targets, place), maps, fast_mode=True
    )


def test_the_page_on_adding_a_method_is_true(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "add-a-method.md").read_text()
    method_of_page, use = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(method_of_page.splitlines()) <= 30, "a screen of code"
    (tmp_path / "page.py").write_text(
        "import torch\nimport hpff\nfrom hpff import LocalLearner\n"
        f"{method_of_page}\nmodel = hpff.models.create('resnet32', width=4)\n"
        "images, targets = torch.rand(6, 3, 16, 16), torch.arange(6)\n"
        f"{use}\n"
        "assert hpff.check_gradients(learner, images.double(), targets) == {}\n"
        "from hpff import methods\n"
        "ours = LocalLearner(hpff.models.create('resnet32', width=4), modules=16, "
        "example=images[:2], num_classes=10, method='auglocal')\n"
        "count = lambda learner: sum(p.numel() for p in learner.parameters() if p.ndim > 1)\n"
        "assert count(ours) == count(learner)\n"
    )
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("method", ["dgl", "predsim", "infopro", "auglocal"])
@pytest.mark.parametrize(
    ("patches", "patch_mode"), [(1, "auto"), (2, "together"), (2, "one-by-one")]
)
def test_every_method_works_in_bfloat16(method: str, patches: int, patch_mode: str) -> None:
    images, targets = torch.rand(8, 3, 16, 16), torch.arange(8) % 3
    learner = LocalLearner(
        models.create("resnet20", width=4),
        modules=4,
        example=images[:2],
        num_classes=3,
        method=method,
        patches=patches,
        patch_mode=patch_mode,
    )
    exact = learner.backward(images, targets)
    learner.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        losses = learner.backward(images, targets)
    torch.testing.assert_close(losses.total, exact.total, rtol=0.1, atol=0.0, check_dtype=False)
    for parameter in learner.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("method", [methods.PredSim(), methods.InfoPro(task="contrast")])
def test_methods_that_compare_labels_need_indices(method: Method) -> None:
    place = Place(1, 3, "independent", (4, 4, 4), (3, 8, 8), (), 3, 1, F.cross_entropy)
    outputs = {name: torch.rand(5, 3) for name in ("logits", "task", "similarity")}
    with pytest.raises(UserError, match=r"float32 of shape \(5, 3\); expected class indices"):
        method.loss(outputs, torch.rand(5, 3), place)


def test_the_page_on_methods_names_every_setting() -> None:
    page = (REPOSITORY / "docs" / "methods.md").read_text().split("##")[0]
    told_by_data = {"mean", "std"}
    for name, _ in methods.names():
        missing = [
            setting
            for setting in methods.setting_names(name)
            if f"`{setting}`" not in page and setting not in told_by_data
        ]
        assert not missing, name
