"""The reference reads the rule from the settings: what a learner gets wrong of it is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from hpff import LocalLearner, check_gradients, models
from hpff.engine.level_weights import LevelWeights
from hpff.engine.reach import Reach
from hpff.errors import UserError

IMAGES = torch.rand(6, 3, 16, 16, dtype=torch.float64)
TARGETS = torch.arange(6)


def right() -> LocalLearner:
    model = models.create("resnet20", num_classes=10, width=8).double()
    method = {"name": "infopro", "reconstruction": [2.0, 1.0], "task": "softmax"}
    return LocalLearner(model, modules=5, example=IMAGES[:2], num_classes=10, method=method)


def drop_every_second_cascade(learner: LocalLearner) -> None:
    lengths = learner.reach.lengths
    learner.reach = Reach((*(k if j % 2 else 1 for j, k in enumerate(lengths[:-1])), 2))


def swap_the_levels_weights(learner: LocalLearner) -> None:
    networks = learner.auxiliary_networks
    weights = networks.weights
    swapped = LevelWeights(weights.cascade, weights.independent, weights.auxiliary)
    learner.auxiliary_networks = replace(networks, weights=swapped)


def halve_lambda(learner: LocalLearner) -> None:
    first, last = learner.method.reconstruction
    learner.method.reconstruction = (first / 2, last / 2)


def turn_patches_off(learner: LocalLearner) -> None:
    networks = learner.auxiliary_networks
    kinds = [module.features for module in networks.partition[:-1]]
    whole = networks.partition.with_features(kinds, [1] * len(kinds))
    learner.auxiliary_networks = replace(networks, partition=whole)


def move_a_cut(learner: LocalLearner) -> None:
    learner.settings = replace(learner.settings, modules=("conv1", *_cuts(learner)[1:]))


def _cuts(learner: LocalLearner) -> list[str]:
    return [module.cut for module in learner.partition[:-1]]


def test_nothing_differs_where_nothing_is_broken() -> None:
    assert check_gradients(right(), IMAGES, TARGETS) == {}


@pytest.mark.parametrize(
    "break_it",
    [
        drop_every_second_cascade,
        swap_the_levels_weights,
        halve_lambda,
        turn_patches_off,
        move_a_cut,
    ],
)
def test_what_departs_from_the_settings_is_found(
    break_it: Callable[[LocalLearner], None],
) -> None:
    learner = right()
    break_it(learner)
    assert check_gradients(learner, IMAGES, TARGETS)


def test_a_network_that_is_missing_is_named() -> None:
    learner = right()
    del learner.auxiliary_networks.contexts["cascade", 3]
    with pytest.raises(UserError, match="no cascade network at module 3"):
        check_gradients(learner, IMAGES, TARGETS)


def test_the_example_follows_the_model() -> None:
    learner = right().float()
    assert check_gradients(learner, IMAGES.float(), TARGETS) == {}
