"""A budget for "blocks": in more memory than the least a step recomputes less, to the same bits."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpff import LocalLearner, LocalSettings, check_gradients, models
from hpff.cutting.local_modules import LocalModule
from hpff.cutting.partition import partition
from hpff.engine.room import Room, with_room
from hpff.engine.stretches import Stretches
from hpff.engine.tried_anchors import stretches_of
from hpff.errors import UserError
from hpff.memory import RECOMPUTED, Strategy, Workload
from hpff.memory.rehearsal import Rehearsal, Stage, best_checkpointing
from hpff.settings import LIGHT

IMAGES = 4, 3, 32, 32


@cache
def whole(name: str) -> LocalModule:
    """A network as one module."""
    model = models.create(name, num_classes=10)
    (module,) = partition(model, 1, torch.zeros(IMAGES))
    return module


@settings(max_examples=30)
@given(
    name=st.sampled_from(["resnet20", "mobilenet_v2"]),
    in_backward=st.floats(0, 1.2),
    in_carry=st.floats(0, 1.2),
    between=st.floats(0, 1.2),
    is_carried=st.booleans(),
)
def test_what_is_chosen_fits_and_works_no_more_than_recomputing_all(
    name: str, in_backward: float, in_carry: float, between: float, *, is_carried: bool
) -> None:
    module = whole(name)
    all_kept = replace(Stretches.whole(module, 0), keeps_last=True)
    room = Room(
        last=int(in_backward * all_kept.last),
        carry=int(in_carry * all_kept.carry) if is_carried else None,
        between=int(between * all_kept.kept),
    )
    least = stretches_of(module, 0)[0]
    found = with_room(least, room, least.work)
    if found is None:
        return
    assert found.last <= room.last
    assert room.carry is None or found.carry <= room.carry
    assert found.kept <= room.between
    assert found.work < least.work
    if min(in_backward, between, in_carry if is_carried else 1) >= 1:
        assert (found.anchors, found.work) == ((), 0)


def test_more_room_is_never_more_work() -> None:
    module = whole("resnet20")
    least = stretches_of(module, 0)[0]
    rooms = [int(part * Stretches.whole(module, 0).last) for part in (0.35, 0.4, 0.6, 0.8, 1)]
    works = [
        way.work for room in rooms if (way := with_room(least, Room(room, None, room), least.work))
    ]
    assert len(works) == 5
    assert works == sorted(works, reverse=True)
    assert works[0] > works[-1] == 0


STAGE = Stage(Workload("torchvision/resnet50", image=(3, 64, 64)))
BATCH = 32


@pytest.mark.parametrize(
    ("strategy", "modules"),
    [
        (Strategy.of("bp"), 1),
        (Strategy.of("dgl", **LIGHT), 4),
        (Strategy.of("dgl", 2, 2, **LIGHT), 4),
        (Strategy.of("dgl", 3, independent=False, **LIGHT), 6),
        (Strategy(LocalSettings(preset="accurate", recompute="never")), 8),
    ],
    ids=["bp", "dgl", "dgl+hpff", "dgl+cl", "accurate"],
)
def test_a_step_takes_about_the_budget_and_computes_less_and_less(
    strategy: Strategy, modules: int
) -> None:
    stage = STAGE.with_cut(modules, "memory")
    budgets = 1, 1.5, 2, 3, 100
    costs, standing = [], 0
    for budget in budgets:
        way = strategy.with_settings(recompute="blocks", recompute_budget=budget)
        rehearsal = Rehearsal(stage, way)
        standing = sum(t.nbytes for _, t in rehearsal.step.standing())
        costs.append(rehearsal.cost(BATCH))
    least = costs[0][0] - standing
    for budget, (needed, _) in zip(budgets, costs, strict=True):
        assert needed - standing < 1.15 * budget * least
    needed, computed = zip(*costs, strict=True)
    assert all(less <= 1.02 * more for less, more in pairwise(needed)), "about, as it is estimated"
    assert list(computed) == sorted(computed, reverse=True)
    peak, arithmetic = Rehearsal(stage, strategy).cost(BATCH)
    assert computed[-1] == arithmetic < computed[0], "nothing is recomputed"
    assert needed[-1] < 1.001 * peak


@pytest.mark.parametrize("budget", [1.2, 1.7, 2.5, 100.0])
@pytest.mark.parametrize(
    "settings",
    [
        {"method": "bp"},
        {"modules": 3, "cascade": 1},
        {"modules": 4},
        {"modules": 5, "cascade": 3},
        {"modules": 10, "preset": "accurate"},
    ],
    ids=["bp", "dgl", "dgl+hpff", "k=3", "accurate"],
)
def test_gradients_are_those_of_the_least_to_the_bit(
    settings: dict[str, Any], budget: float
) -> None:
    torch.manual_seed(0)
    model = models.create("resnet20", num_classes=10)
    images, targets = torch.randn(IMAGES), torch.randint(10, (4,))
    found = []
    for room in (1.0, budget):
        torch.manual_seed(1)
        given = {"recompute": "blocks", "recompute_budget": room, **settings}
        learner = LocalLearner(model, example=images[:2], num_classes=10, **given)
        learner.zero_grad()
        learner.backward(images, targets)
        found.append([p.grad.clone() for p in learner.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 40
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("method", ["bp", "dgl"])
@pytest.mark.parametrize("budget", [1.3, 2.0])
def test_gradients_are_the_references(method: str, budget: float) -> None:
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    learner = LocalLearner(
        models.create("resnet20", width=8).double(),
        modules=3,
        example=images[:2],
        num_classes=10,
        method=method,
        recompute="blocks",
        recompute_budget=budget,
    )
    assert not check_gradients(learner, images, torch.arange(4))


def test_other_ways_of_recomputation_know_no_budget() -> None:
    for way in ("never", "once", "repeatedly"):
        expected = f"recompute_budget: is 2 with recompute {way}, expected 1, or recompute blocks"
        with pytest.raises(UserError, match=expected):
            LocalSettings(method="bp", recompute=way, recompute_budget=2)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"recompute_budget: is 0.5, expected a number of at least"):
        LocalSettings(recompute="blocks", recompute_budget=0.5)
    assert str(Strategy.of("bp", recompute="blocks", recompute_budget=1.25)) == (
        "bp recompute=blocks budget=1.25"
    )


def test_in_checkpointings_memory_a_transformer_computes_no_more_than_by_checkpointing() -> None:
    """That recomputes blocks but for their last layer, a third of them: as cheap as can be."""
    stage = Stage(Workload("torchvision/vit_b_16", image=(3, 224, 224)))
    peak, arithmetic = best_checkpointing(stage, 128)[0].cost(128)
    ours = Rehearsal(stage, RECOMPUTED.with_settings(recompute_budget=1.45)).cost(128)
    assert ours[0] < peak
    assert ours[1] <= arithmetic
