"""Methods: DGL's networks, and a method of one's own in a few lines."""

from __future__ import annotations

import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from naive.rule import random_chain
from torch import Tensor, nn

from hpff import LocalLearner, check_gradients, methods, models
from hpff.auxiliary import ConvMLP, cut
from hpff.errors import UserError
from hpff.methods import DGL, AuxiliaryContext, Method
from hpff.models.cifar_resnet import BasicBlock


@pytest.mark.parametrize(("channels", "parameters"), [(16, 9_962), (32, 37_834), (64, 147_338)])
def test_auxiliary_network_has_the_published_size(channels: int, parameters: int) -> None:
    """AugLocal's DGL baseline for CIFAR ResNets, counted by running its code."""
    network = ConvMLP(channels, 10)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_dgls_own_code_has_three_hidden_layers_with_bias() -> None:
    context = AuxiliaryContext(
        1, 4, "independent", (16, 8, 8), (3, 32, 32), (), 10, 1, F.cross_entropy
    )
    network = DGL(hidden_layers=3, hidden_bias=True).auxiliary(context)
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

    def auxiliary(self, context: AuxiliaryContext) -> nn.Module:
        return nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.BatchNorm1d(context.features[0]),
            nn.Linear(context.features[0], context.num_classes),
        )

    def loss(self, outputs: Tensor, targets: Tensor, context: AuxiliaryContext) -> Tensor:
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
    """Its network begins with operations in context, and takes images too."""

    needs_images = True

    class Network(nn.Module):
        def __init__(self, context: AuxiliaryContext) -> None:
            super().__init__()
            self.relu = nn.ReLU(inplace=True)
            self.drop = nn.Dropout(0.0, inplace=True)
            self.classifier = nn.Linear(context.features[0] + 3, context.num_classes)

        def forward(self, maps: Tensor, images: Tensor) -> Tensor:
            both = (self.drop(self.relu(maps)).mean((2, 3)), images.mul_(2).mean((2, 3)))
            return self.classifier(torch.cat(both, 1))

    def auxiliary(self, context: AuxiliaryContext) -> nn.Module:
        return self.Network(context)


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
        ({"hidden_layers": -1}, "expected 0 to 100"),
        ({"hidden_layers": 1.5}, "expected a whole number"),
        ({"hidden_bias": "yes"}, "expected true or false"),
        ({"depth": 3}, "has no setting 'depth'"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        methods.create("dgl", **settings)


def test_names_list_every_method() -> None:
    names = [name for name, _ in methods.names()]
    assert names == ["bp", "dgl", "predsim", "infopro", "auglocal", "man"]
    assert all(description for _, description in methods.names())


def auglocal(layer: int, widths: list[int], **settings: object) -> nn.Module:
    """The network of unit `layer` (from 0) of a network cut after every unit of these widths."""
    context = AuxiliaryContext(
        module=layer + 1,
        modules=len(widths),
        level="independent",
        features=(widths[layer], 8, 8),
        image=(),
        following=tuple((width, 8, 8) for width in widths[layer + 1 :]),
        num_classes=10,
        patches=1,
        criterion=F.cross_entropy,
        preceding=layer,
    )
    return methods.create("auglocal", **settings).auxiliary(context)


def chain(network: nn.Module) -> list[int]:
    return [block.conv2.out_channels for block in network if isinstance(block, BasicBlock)]


def test_published_settings_of_auglocal() -> None:
    depths = {"resnet32": 2, "resnet110": 3}
    for network, depth in depths.items():
        found = methods.published("auglocal", network=network, data="cifar10", modules=16)
        assert found == {"depth": depth}
    found = methods.published("auglocal", network="timm/resnet34", data="imagenet", modules=17)
    assert found == {"depth": 4, "pyramid": False}
    assert methods.published("auglocal", network="resnet20", data="cifar10", modules=10) == {}
    assert methods.published("dgl", network="resnet32", data="cifar10", modules=16) == {}


RESNET32 = [16] * 6 + [32] * 5 + [64] * 5  # the stem, and three stages
RESNET110 = [16] * 19 + [32] * 18 + [64] * 18


def test_auglocal_chooses_evenly_from_the_rest_and_shrinks() -> None:
    # Of the 15 blocks that follow, the 4th, 8th (7.5, half to even), 11th and 15th.
    assert chain(auglocal(0, RESNET32, depth=4)) == [16, 32, 64, 64]
    lengths = [len(chain(auglocal(j, RESNET32, depth=4))) for j in (0, 7, 14)]
    assert lengths == [4, 3, 1]
    assert chain(auglocal(14, RESNET32, depth=4)) == [64]


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_auglocals_chains_are_those_of_its_formula(depth: int) -> None:
    """Units round(l + (L - 1 - l) i / d), i = 1..d, halves to even, of a network of numbered units.

    d shrinks: max(1, round(d (1 - r) + r)), r = l / 2 (K - 2).
    """
    last = 54
    for layer in range(last):
        shrunk = 0.5 * layer / (last - 1)
        count = min(max(1, round(depth * (1 - shrunk) + shrunk)), last - layer)
        exact = [Fraction(layer) + Fraction((last - layer) * i, count) for i in range(1, count + 1)]
        units = [round(context) for context in exact]
        numbered = [1 if unit < layer else unit for unit in range(last + 1)]
        numbered[layer] = 1
        assert chain(auglocal(layer, numbered, depth=depth)) == units


def test_the_parity_of_the_unit_decides_how_halves_are_rounded() -> None:
    """ResNet-110, d = 2: half way from unit 17 is 35.5, so 36; counted from 17 on, 18.5 is 18."""
    assert [round(17 + 18.5), 17 + round(18.5)] == [36, 35]
    numbered = [1] * 18 + list(range(18, 55))
    assert chain(auglocal(17, numbered, depth=2))[0] == 36


def test_auglocals_batch_norm_stands_only_where_depth_is_one() -> None:
    def has_norm(network: nn.Module) -> bool:
        return any(isinstance(layer, nn.BatchNorm1d) for layer in network)

    assert all(has_norm(auglocal(layer, RESNET32, depth=1)) for layer in (0, 7, 14))
    assert len(chain(auglocal(14, RESNET32, depth=2))) == 1
    assert not any(has_norm(auglocal(layer, RESNET32, depth=2)) for layer in (0, 7, 14))
    assert not has_norm(auglocal(0, RESNET32, depth=1, pyramid=False))


def test_auglocal_without_a_pyramid_has_its_depth_wherever_blocks_are_left() -> None:
    lengths = [len(chain(auglocal(j, RESNET32, depth=4, pyramid=False))) for j in (0, 7, 11, 13)]
    assert lengths == [4, 4, 4, 2]


@pytest.mark.parametrize("settings", [{"depth": 0}, {"pyramid": 1}])
def test_wrong_settings_of_auglocal(settings: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        methods.create("auglocal", **settings)


def test_a_learner_tells_how_many_units_precede() -> None:
    """Module 8 of ResNet-32 in 8 ends with its last block but two: units 0 to 1, 2 to 3, ..."""
    seen: dict[int, int] = {}

    class Notes(methods.DGL):
        def auxiliary(self, context: AuxiliaryContext) -> nn.Module:
            seen[context.module] = context.preceding
            return super().auxiliary(context)

    for modules, expected in ((16, list(range(15))), (8, [1, 3, 5, 7, 9, 11, 13])):
        seen.clear()
        model = models.create("resnet32", 3, width=4)
        example = torch.zeros(2, 3, 16, 16)
        LocalLearner(model, modules=modules, example=example, num_classes=3, method=Notes())
        assert list(seen.values()) == expected


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
    context = AuxiliaryContext(1, 3, "independent", (4, 4, 4), (), shapes, 3, 1, F.cross_entropy)
    method = methods.create("auglocal")
    network = method.auxiliary(context).double()
    maps = torch.randn(5, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 2, 1, 1, 2])
    assert torch.autograd.gradcheck(
        lambda x: method.loss(network(x), targets, context), maps, fast_mode=True
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


@pytest.mark.parametrize("method", ["dgl", "predsim", "infopro", "auglocal", "man"])
@pytest.mark.parametrize(
    ("patches", "patch_mode"), [(1, "auto"), (2, "together"), (2, "one-by-one")]
)
def test_every_method_works_in_bfloat16(method: str, patches: int, patch_mode: str) -> None:
    images, targets = torch.rand(8, 3, 16, 16), torch.arange(8) % 3
    learner = LocalLearner(
        models.create("resnet20", 3, width=4),
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
    context = AuxiliaryContext(1, 3, "independent", (4, 4, 4), (3, 8, 8), (), 3, 1, F.cross_entropy)
    outputs = {name: torch.rand(5, 3) for name in ("logits", "task", "similarity")}
    with pytest.raises(UserError, match=r"float32 of shape \(5, 3\); expected class indices"):
        method.loss(outputs, torch.rand(5, 3), context)


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
