"""AugLocal on a transformer: chains of the network's own blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpff import LocalLearner, check_gradients, models
from hpff.auxiliary.ahead import FreshBlocks
from hpff.models.cifar_resnet import BasicBlock

IMAGES = torch.rand(4, 3, 16, 16)


def vit() -> nn.Module:
    sizes: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "num_heads": 2}
    return models.create("timm/vit_tiny_patch16_224", 10, depth=5, **sizes)


def learner(model: nn.Module, depth: int = 3, **settings: Any) -> LocalLearner:
    method = {"name": "auglocal", "depth": depth}
    return LocalLearner(
        model, modules=5, method=method, example=IMAGES[:2], num_classes=10, **settings
    )


def first_of(learner: LocalLearner, module: int) -> nn.Module:
    """Where the auxiliary network of a module begins."""
    network = learner.auxiliary_networks.at("independent", module).network
    assert isinstance(network, nn.Sequential)
    return network[0]


def test_a_chain_has_as_many_of_the_blocks_that_follow_as_it_has_blocks() -> None:
    model = vit()
    made = learner(model, patches=1)
    chains = [first_of(made, j) for j in range(1, 5)]
    lengths = [len(chain.copies) for chain in chains if isinstance(chain, FreshBlocks)]
    assert lengths == [3, 3, 2, 1]
    own = {id(parameter) for parameter in model.parameters()}
    for chain in chains:
        assert type(chain.copies[0]) is type(model.blocks[0])  # type: ignore[union-attr, index]
        assert own.isdisjoint(id(parameter) for parameter in chain.parameters())
        assert all(parameter.requires_grad for parameter in chain.parameters())


@pytest.mark.parametrize("patches", [1, 2])
def test_the_gradients_are_the_rules(patches: int) -> None:
    made = learner(vit(), patches=patches).double()
    assert check_gradients(made, IMAGES.double(), torch.arange(4)) == {}


def test_narrowed_features_take_residual_blocks() -> None:
    made = learner(vit(), patches=1, auxiliary_width=6)
    kinds = {type(module) for module in made.independent_auxiliary.modules()}
    assert BasicBlock in kinds
    assert FreshBlocks not in kinds


def test_blocks_that_want_more_than_the_grid_are_not_copied() -> None:
    """Such as one whose positions are those of all tokens, the class token's too."""

    class Placed(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block
            self.places = nn.Parameter(torch.zeros(17, 12))

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x + self.places)  # type: ignore[no-any-return]

    model = vit()
    model.blocks = nn.Sequential(*(Placed(block) for block in model.blocks))  # type: ignore[union-attr, arg-type]
    made = learner(model, patches=1)
    assert isinstance(first_of(made, 1), BasicBlock)
    assert made.backward(IMAGES, torch.arange(4)).total.isfinite()
