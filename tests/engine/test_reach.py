"""How far the cascades reach: for each module on its own, and chosen by memory."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from naive.rule import random_chain

from hpff import LocalLearner, check_gradients, models
from hpff.engine.reach import Reach, within
from hpff.errors import UserError
from hpff.memory import AllocationCounter

IMAGES = torch.randn(
    6,
    3,
    8,
    8,
    dtype=torch.float64,
    generator=torch.Generator(torch.get_default_device()).manual_seed(0),
)
TARGETS = torch.tensor([0, 1, 2, 3, 0, 1])


def learner(modules: int, **settings: Any) -> LocalLearner:
    torch.manual_seed(0)
    model = random_chain(2, modules, norm=True, side=8)
    return LocalLearner(
        model, modules=modules, example=IMAGES[:2], num_classes=4, patches=1, **settings
    )


@given(
    sizes=st.lists(st.integers(0, 1000), min_size=2, max_size=12),
    budget=st.floats(1, 10),
)
def test_within_takes_the_longest_that_fit(sizes: list[int], budget: float) -> None:
    room = budget * max(a + b for a, b in pairwise(sizes))

    lengths = within(sizes, budget).lengths

    assert lengths[0] == 1
    assert all(length >= 2 for length in lengths[1:])
    for end, length in enumerate(lengths, start=1):
        assert sum(sizes[end - length : end]) <= room
        if length < end and end > 1:
            assert sum(sizes[end - length - 1 : end]) > room


@given(sizes=st.lists(st.integers(1, 1000), min_size=2, max_size=12))
def test_graphs_alive_at_once_fit_too(sizes: list[int]) -> None:
    """A module stays until the last cascade that reaches it: no other may need it beside more."""
    room = max(a + b for a, b in pairwise(sizes))
    reach = within(sizes, 1.0)
    for now in range(1, len(sizes) + 1):
        alive = [j for j in range(1, now + 1) if reach.last_use[j - 1] >= now]
        assert sum(sizes[j - 1] for j in alive) <= room


def test_equal_modules_get_pairs_and_narrow_ones_more() -> None:
    assert within([5, 5, 5, 5], 1.0).lengths == (1, 2, 2, 2)
    assert within([5, 5, 5, 5], 1.5).lengths == (1, 2, 3, 3)
    assert within([8, 8, 4, 4, 2, 2, 2], 1.0).lengths == (1, 2, 2, 3, 3, 4, 5)
    assert within([7], 1.0).lengths == (1,)


@pytest.mark.parametrize("independent", [True, False])
@pytest.mark.parametrize(
    "cascade",
    [
        "auto",
        [1, 2, 2, 2, 2],
        [1, 2, 1, 1, 4],
        [1, 1, 3, 1, 3],
        [1, 2, 3, 4, 5],
        [1, 1, 1, 4, 2],
        (1, 1, 2, 4, 3),
    ],
)
def test_gradients_for_any_lengths(cascade: Any, independent: bool) -> None:
    found = learner(5, cascade=cascade, cascade_budget=1.5, independent=independent)
    if cascade != "auto":
        assert found.reach.lengths == tuple(cascade)
    assert check_gradients(found, IMAGES, TARGETS) == {}
    losses = found.backward(IMAGES, TARGETS)
    assert len(losses.cascade) == sum(length > 1 for length in found.reach.lengths)
    assert len(found.cascade_auxiliary) == len(losses.cascade) - 1
    order: list[int] = []
    found.backward(IMAGES, TARGETS, on_module_done=order.append)
    assert sorted(order) == [1, 2, 3, 4, 5]


@given(modules=st.integers(2, 30), k=st.integers(2, 30), stride=st.integers(1, 30))
def test_cascades_end_a_stride_apart(modules: int, k: int, stride: int) -> None:
    k = min(k, modules)
    reach = Reach.uniform(modules, k, stride)
    ends = [end for end, length in enumerate(reach.lengths, start=1) if length > 1]
    assert set(reach.lengths) <= {1, k}
    assert (ends[0], ends[-1]) == (k, modules)
    gaps = [b - a for a, b in pairwise(ends)]
    assert set(gaps[:-1]) <= {stride}
    assert all(gap <= stride for gap in gaps)
    assert stride > 1 or reach == Reach.uniform(modules, k)


@pytest.mark.parametrize("independent", [True, False])
def test_gradients_where_cascades_share_one_module(independent: bool) -> None:
    found = learner(6, cascade=3, cascade_stride=2, independent=independent)
    assert found.reach.lengths == (1, 1, 3, 1, 3, 3)
    assert len(found.cascade_auxiliary) == 2
    assert check_gradients(found, IMAGES, TARGETS) == {}


def test_auto_takes_no_more_memory_than_pairs() -> None:
    """Counted in whole steps; this network's third stage has a quarter of the first's maps."""
    images = torch.randn(32, 3, 32, 32)
    peaks = {}
    for cascade in (2, "auto", 5):
        torch.manual_seed(0)
        model = models.create("resnet20", width=8)
        found = LocalLearner(
            model, modules=10, example=images[:2], num_classes=10, cascade=cascade, patches=1
        )
        found.backward(images, torch.arange(32) % 10)
        with AllocationCounter() as counter:
            counter.track(t for p in found.parameters() for t in (p, p.grad))
            standing = counter.current
            found.backward(images, torch.arange(32) % 10)
        peaks[cascade] = counter.peak - standing
        if cascade == "auto":
            assert max(found.reach.lengths) >= 4
    assert peaks["auto"] <= 1.05 * peaks[2]
    assert peaks[5] > 1.3 * peaks[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"cascade": "most"},
            "cascade: is 'most', expected a whole number of at least 1 or auto",
        ),
        ({"cascade": 1.5}, "cascade: is 1.5, expected"),
        ({"cascade": [1, 2]}, "cascade: has 2 lengths, expected one for each module (4)"),
        ({"cascade": [1, 3, 2, 2]}, "cascade at module 2 is 3, expected 1 to 2"),
        ({"cascade": [1, 2, 2, 1]}, "cascade at the last module is 1"),
        (
            {"cascade": "auto", "cascade_budget": 0.5},
            "cascade_budget: is 0.5, expected a number",
        ),
        (
            {"cascade": "auto", "cascade_stride": 2},
            "cascade_stride: is 2, expected 1 where cascade",
        ),
        ({"cascade_stride": 0}, "cascade_stride: is 0, expected a whole number of at least 1"),
        (
            {"cascade_stride": 3, "independent": False},
            "cascade_stride: is 3, expected at most cascade (2) without",
        ),
        ({"cascade": [1, 1, 1, 2], "independent": False}, "no cascade trains module 1"),
        ({"cascade": [1, 1, 1, 1], "independent": False}, "turns both levels off"),
    ],
)
def test_wrong_lengths_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        learner(4, **settings)
    assert message in str(caught.value)
