"""Gradient agreement: against backprop's own gradients and the slow reference of the rule."""

from __future__ import annotations

import math

import pytest
import torch
from small_learners import IMAGES, hooks, random_learner, small

from hpff import reference_gradients
from hpff.analysis import Network, gradient_agreement
from hpff.engine.parameters import backbone_parameters

IMAGES64, TARGETS4 = IMAGES.double(), torch.tensor([0, 1, 2, 3, 0, 1])
LOADER = [(IMAGES64, TARGETS4)]


def test_one_cascade_over_all_modules_is_backprop() -> None:
    learner = random_learner(cascade=4, independent=False)
    for each in gradient_agreement(Network.of(learner), LOADER):
        assert each.level == "cascade"
        assert each.cosine == pytest.approx(1, abs=1e-12)
        assert each.norm_ratio == pytest.approx(1, abs=1e-12)


def test_the_last_module_is_always_backprop() -> None:
    found = gradient_agreement(Network.of(random_learner(cascade=2)), LOADER)
    last = {each.level: each for each in found if each.module == 4}
    assert set(last) == {"independent", "cascade", "both"}
    assert all(each.cosine == pytest.approx(1, abs=1e-12) for each in last.values())
    assert last["cascade"].norm_ratio == pytest.approx(1)
    assert last["both"].norm_ratio == pytest.approx(1.1)  # both levels' weights, 0.1 and 1
    others = [each.cosine for each in found if each.module < 3]
    assert max(value for value in others if value is not None) < 0.999


def test_both_levels_are_those_of_the_update_rule() -> None:
    learner = random_learner(cascade=2, independent_weight=0.3, cascade_weight=0.6)
    learner.train()
    wanted = reference_gradients(learner, IMAGES64, TARGETS4)
    named = dict(learner.model.named_parameters())
    final = torch.nn.functional.cross_entropy(learner.model(IMAGES64), TARGETS4)
    backprop = dict(zip(named, torch.autograd.grad(final, list(named.values())), strict=True))
    found = {
        e.module: e for e in gradient_agreement(Network.of(learner), LOADER) if e.level == "both"
    }
    for j, parameters in enumerate(backbone_parameters(learner.model, learner.partition), 1):
        names = [name for name, p in named.items() if any(p is own for own in parameters)]
        ours = torch.cat([wanted[f"model.{name}"].flatten() for name in names])
        theirs = torch.cat([backprop[name].flatten() for name in names])
        cosine = float(ours @ theirs / ours.norm() / theirs.norm())
        assert found[j].cosine == pytest.approx(cosine, rel=1e-9)
        assert found[j].norm == pytest.approx(float(ours.norm()), rel=1e-9)
        assert found[j].norm_ratio == pytest.approx(float(ours.norm() / theirs.norm()), rel=1e-9)


def test_batches_are_averaged_and_nothing_is_left_behind() -> None:
    learner = small(cascade=2)
    learner.eval()
    for parameter in learner.parameters():
        parameter.grad = torch.ones_like(parameter)
    state = {name: value.clone() for name, value in learner.state_dict().items()}
    random = torch.get_rng_state()
    batches = [(IMAGES, torch.arange(6)), (IMAGES.flip(0), torch.arange(6))]
    both = gradient_agreement(Network.of(learner), batches)
    each = [gradient_agreement(Network.of(learner), [batch]) for batch in batches]
    for mean, first, second in zip(both, *each, strict=True):
        assert mean.cosine == pytest.approx((first.cosine + second.cosine) / 2)
        spread = abs(first.cosine - second.cosine) / math.sqrt(2)
        assert mean.cosine_spread == pytest.approx(spread)
        assert first.cosine_spread is None
    assert all(torch.equal(value, state[name]) for name, value in learner.state_dict().items())
    assert all(bool((p.grad == 1).all()) for p in learner.parameters())
    assert torch.equal(random, torch.get_rng_state())
    assert not learner.training
    assert hooks(learner.model) == 0


def test_levels_that_are_off_are_not_there() -> None:
    alone = gradient_agreement(Network.of(random_learner(cascade=1)), LOADER)
    assert {each.level for each in alone} == {"independent"}
    assert gradient_agreement(Network.of(random_learner(method="bp")), LOADER) == ()
