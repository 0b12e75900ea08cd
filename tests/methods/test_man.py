"""MAN: networks that follow the block to come, and are not trained there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_learners import IMAGES, TARGETS, small
from torch import Tensor, nn

from hpff import LocalLearner, check_gradients, methods, models
from hpff.auxiliary import AheadNetwork
from hpff.errors import UserError
from hpff.methods import MAN

DOUBLE = IMAGES.double()


def learner(method: MAN, **settings: Any) -> LocalLearner:
    model = models.create("resnet20", width=4).double()
    settings = {"modules": 5, "example": DOUBLE[:2], "num_classes": 10} | settings
    return LocalLearner(model, method=method, **settings)


def trained(method: MAN, steps: int = 2, **settings: Any) -> LocalLearner:
    made = learner(method, **settings)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        made.backward(DOUBLE, TARGETS)
        optimizer.step()
    return made


def ahead(of: LocalLearner, j: int, level: str = "independent") -> AheadNetwork:
    network = of.auxiliary_networks.at(level, j).network
    assert isinstance(network, AheadNetwork)
    return network


@pytest.mark.parametrize(
    ("base", "twin", "k", "n"),
    [
        ("dgl", True, 1, 1),
        ("dgl", False, 3, 2),
        ("predsim", True, 2, 2),
        ("infopro", False, 2, 2),
        ("auglocal", True, 2, 2),
    ],
)
def test_it_is_exact(base: str, twin: bool, k: int, n: int) -> None:
    made = trained(MAN(base, momentum=0.5, twin=twin), cascade=k, patches=n)
    assert check_gradients(made, DOUBLE, TARGETS) == {}


@pytest.mark.parametrize("mode", ["together", "one-by-one"])
def test_it_is_exact_with_several_blocks_and_patches_any_way(mode: str) -> None:
    made = trained(MAN(depth=3, momentum=0.5), cascade=2, patches=2, patch_mode=mode)
    assert check_gradients(made, DOUBLE, TARGETS) == {}


def test_a_copy_is_the_moving_average_of_its_block_at_the_start_of_each_step() -> None:
    made = learner(MAN(momentum=0.9, depth=2))
    blocks = [made.model.get_submodule(name) for name in ("layer1.1", "layer1.2")]
    assert made.partition[0].cut == "layer1.0"

    def weights(of: Any) -> dict[str, Tensor]:
        return {f"{i}.{n}": p.detach().clone() for i, b in enumerate(of) for n, p in n_p(b)}

    def n_p(block: nn.Module) -> Any:
        return block.named_parameters()

    expected = weights(blocks)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    for _ in range(3):
        now = weights(blocks)
        expected = {name: 0.9 * old + 0.1 * now[name] for name, old in expected.items()}
        optimizer.zero_grad()
        made.backward(DOUBLE, TARGETS)
        optimizer.step()
        found = dict(ahead(made, 1).followed.copies.named_buffers())
        assert set(found) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("twin", [True, False])
def test_what_it_computes(twin: bool) -> None:
    """Once more from the model's own blocks, which copies equal at first; patch by patch."""
    made = learner(MAN(twin=twin), modules=10, patches=2)
    network = ahead(made, 2)
    block = copy.deepcopy(made.model.get_submodule(made.partition[2].submodules[0]))
    maps = torch.randn(6, 4, 16, 16, dtype=torch.float64)
    scores = []
    for patch in (p for rows in maps.chunk(2, 2) for p in rows.chunk(2, 3)):
        output = block(patch)
        if twin:
            output = output + _with_batch_statistics(network.twin)(patch)
        scores.append(_with_batch_statistics(network.behind)(F.avg_pool2d(output, 4)))
    found = made.auxiliary_networks.at("independent", 2)(maps)
    torch.testing.assert_close(found, torch.stack(scores).mean(0))


def _with_batch_statistics(network: nn.Module | None) -> nn.Module:
    """One patch at a time: no groups."""
    assert network is not None
    made = copy.deepcopy(network)
    for layer in made.modules():
        if hasattr(layer, "groups") and not isinstance(layer, nn.Conv2d):
            layer.groups = 1
    return made


def test_a_twin_has_weights_of_its_own_and_a_copy_is_not_trained() -> None:
    made = learner(MAN())
    network = ahead(made, 1)
    block = dict(made.model.get_submodule(made.partition[1].submodules[0]).named_parameters())
    for name, weight in network.twin.copies[0].named_parameters():
        assert weight.ndim < 2 or not torch.equal(weight, block[name]), name
    assert not list(network.followed.parameters())
    storages = {p.untyped_storage().data_ptr() for p in made.model.parameters()}
    own = [*network.parameters(), *network.buffers()]
    assert not any(t.untyped_storage().data_ptr() in storages for t in own)


def test_scale_and_bias_instead_of_the_twin() -> None:
    network = ahead(learner(MAN(twin=False)), 1)
    maps = torch.randn(6, 4, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(network.ahead(maps), network.followed(maps))
    with torch.no_grad():
        network.scale.copy_(torch.arange(4))
        network.bias.fill_(2.0)
    expected = network.followed(maps) * torch.arange(4).view(-1, 1, 1) + 2
    torch.testing.assert_close(network.ahead(maps), expected)


def test_after_the_last_block_the_base_is_alone() -> None:
    made = learner(MAN(), modules=["layer2.1", "layer3.2"])
    assert made.auxiliary_networks.contexts["independent", 2].next_blocks == ()
    assert ahead(made, 2).followed is None
    assert check_gradients(made, DOUBLE, TARGETS) == {}


def test_a_state_and_a_copy_of_a_learner_carry_the_averages() -> None:
    made = trained(MAN(momentum=0.5))
    other = learner(MAN(momentum=0.5))
    other.load_state_dict(made.state_dict())
    twice = copy.deepcopy(made)
    for each in (made, other, twice):
        each.zero_grad()
        each.backward(DOUBLE, TARGETS)
    for a, b, c in zip(made.parameters(), other.parameters(), twice.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
        assert torch.equal(a.grad, c.grad)
    block = made.partition[1].submodules[0]
    with torch.no_grad():
        made.model.get_submodule(block).conv1.weight.zero_()
    followed = ahead(twice, 1).followed.copies[0].conv1.weight
    expected = 0.5 * followed + 0.5 * twice.model.get_submodule(block).conv1.weight
    twice.backward(DOUBLE, TARGETS)
    torch.testing.assert_close(followed, expected.detach())


class Mixing(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.mix(self.norm(x))) * x.mean(1, keepdim=True)


class Transformer(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.Sequential(*(Mixing(width) for _ in range(depth)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x).flatten(2).mT).mean(1))


@pytest.mark.parametrize("n", [1, 2])
def test_blocks_of_a_transformer_are_followed_on_the_grid(n: int) -> None:
    model = Transformer(5, 4).double()
    made = LocalLearner(
        model,
        modules=4,
        example=DOUBLE[:2],
        num_classes=10,
        method=MAN("dgl"),
        patches=n,
        cascade=2,
    )
    assert made.partition[0].features.kind == "tokens"
    maps = torch.randn(6, 5, 4, 4, dtype=torch.float64)
    seen = ahead(made, 1).followed(maps).flatten(2).mT
    torch.testing.assert_close(seen, made.model.blocks[1](maps.flatten(2).mT))
    assert check_gradients(made, DOUBLE, TARGETS) == {}


class Gated(nn.Module):
    """A block that needs more than features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor, gate: float) -> Tensor:
        return self.conv(x) * gate


class GatedChain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.ModuleList(Gated() for _ in range(3))
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, 2.0)
        return self.head(x.mean((2, 3)))


def test_a_block_that_needs_more_than_features_is_refused_in_a_line() -> None:
    with pytest.raises(UserError, match=r"block after module 1 does not run.*TypeError.*auglocal"):
        LocalLearner(GatedChain(), modules=3, example=IMAGES[:2], num_classes=10, method=MAN("dgl"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.5}, "momentum is 1.5; expected a number from 0 to 1"),
        ({"momentum": "high"}, "momentum is 'high'"),
        ({"momentum": True}, "momentum is True"),
        ({"twin": 1}, "twin is 1; expected true or false"),
        ({"depth": 0}, "depth is 0; expected a whole number from 1 to 1000"),
        ({"base": "dlg"}, "unknown method 'dlg', did you mean dgl?"),
        ({"base": {"name": "dgl", "hidden": 3}}, "method 'dgl' has no setting 'hidden'"),
        ({"base": {"hidden": 3}}, "expected a name, or a name and its settings"),
        ({"base": 3}, "base is 3"),
        ({"base": "bp"}, "base is 'bp'; expected another local method"),
        ({"base": "man"}, "base is 'man'; expected another local method"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        methods.create("man", **settings)
    assert message in str(caught.value)


def test_narrow_auxiliary_networks_are_refused_and_pooled_ones_are_not() -> None:
    with pytest.raises(UserError, match="leave out auxiliary_width"):
        small(method="man", auxiliary_width=2)
    made = learner(MAN(), auxiliary_pool=2, patches=2)
    assert made.auxiliary_networks.contexts["independent", 1].features == (4, 4, 4)
    assert check_gradients(made, DOUBLE, TARGETS) == {}


def test_the_published_way_has_infopro_behind() -> None:
    found = methods.published("man", network="resnet32", data="cifar10", modules=16)
    assert found["base"]["name"] == "infopro"
    assert found["base"]["reconstruction"] == [4.64, 3.93]
    assert found["base"]["classification"] == [0.46, 0.39]
    made = methods.create("man", **found)
    assert made.needs_images
    imagenet = methods.published("man", network="resnet101", data="imagenet", modules=4)
    assert imagenet["base"]["head"] == "imagenet"
    assert imagenet["base"]["classification"] == [0.75, 0.75]
    assert methods.published("man", network="resnet20", data="digits", modules=4) == {}
