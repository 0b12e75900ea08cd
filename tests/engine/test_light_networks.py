"""Auxiliary networks of a stated width, on pooled maps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hpff import LocalLearner, check_gradients, models


@pytest.mark.parametrize("method", ["dgl", "predsim", "infopro", "auglocal"])
def test_narrow_networks_on_pooled_maps_train_by_the_same_rule(method: str) -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    learner = LocalLearner(
        models.create("resnet20", width=8).double(),
        modules=4,
        example=images[:2],
        num_classes=10,
        method=method,
        auxiliary_width=12,
        auxiliary_pool=2,
    )
    assert not check_gradients(learner, images, torch.arange(4))
    seen = [context.features[0] for context in learner.auxiliary_networks.contexts.values()]
    assert max(seen) == 12


def test_a_narrow_network_does_not_grow_with_its_features() -> None:
    def parameters(width: int | None) -> int:
        model = nn.Sequential(nn.Conv2d(3, 512, 3, padding=1), nn.ReLU(), nn.Flatten())
        model.append(nn.Linear(512 * 64, 10))
        learner = LocalLearner(
            model,
            modules=["1"],
            example=torch.zeros(2, 3, 8, 8),
            num_classes=10,
            cascade=1,
            auxiliary_width=width,
        )
        return sum(p.numel() for p in learner.independent_auxiliary.parameters())

    assert parameters(None) > 8_000_000
    assert parameters(32) < 60_000
