from __future__ import annotations

import math

import pytest

from hpff.recipes.recipe import OptimizerRecipe, ScheduleRecipe
from hpff.training.rate import rate

OPTIMIZER = OptimizerRecipe(lr=0.8)


def published(epoch: int, epochs: int) -> float:
    """The published rule, in its own words: lr 0.8, ten epochs of warm-up from 0.01."""
    cosine = 0.5 * 0.8 * (1 + math.cos(math.pi * epoch / epochs))
    if epoch <= 10:
        return cosine * (epoch - 1) / 10 + 0.01 * (11 - epoch) / 10
    return cosine


@pytest.mark.parametrize("epochs", [10, 160, 400])
def test_cosine_is_the_published_one(epochs: int) -> None:
    schedule = ScheduleRecipe(name="cosine", warmup_epochs=10, warmup_lr=0.01)
    for epoch in range(1, epochs + 1):
        assert rate(epoch, epochs, OPTIMIZER, schedule) == pytest.approx(
            published(epoch, epochs), abs=1e-15
        )


def test_starts_at_the_warmup_rate_and_ends_at_zero() -> None:
    schedule = ScheduleRecipe(name="cosine", warmup_epochs=3, warmup_lr=0.05)
    assert rate(1, 20, OPTIMIZER, schedule) == pytest.approx(0.05)
    assert rate(20, 20, OPTIMIZER, schedule) == pytest.approx(0, abs=1e-15)


def test_constant_without_warmup() -> None:
    schedule = ScheduleRecipe(name="constant", warmup_epochs=0)
    assert [rate(epoch, 3, OPTIMIZER, schedule) for epoch in (1, 2, 3)] == [0.8, 0.8, 0.8]
