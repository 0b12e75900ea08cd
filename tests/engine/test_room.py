"""A budget for "blocks": in more memory than the least a step recomputes less, to the same bits."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpff import LocalLearner, LocalSettings, check_gradients, models
from hpff.cutting.partition import LocalModule, partition
from hpff.engine.room import with_room
from hpff.engine.stretches import Stretches, stretches_of
from hpff.errors import UserError
from hpff.memory import Strategy, Workload
from hpff.memory.rehearsal import Rehearsal, Stage

IMAGES = 4, 3, 32, 32


@cache
def whole(name: str) -> LocalModule:
    """A network as one module."""
    model = models.create(name, num_classes=10)
    (module,) = partition(model, 1, torch.zeros(IMAGES))
    return module


@given(
    name=st.sampled_from(["resnet20", "mobilenet_v2"]),
    in_backward=st.floats(0, 1.2),
    between=st.floats(0, 1.2),
)
def test_what_is_chosen_fits_and_works_no_more_than_recomputing_all(
    name: str, in_backward: float, between: float
) -> None:
    module = whole(name)
    all_kept = Stretches.at(module, 0, ())
    room = int(in_backward * all_kept.last), int(between * (all_kept.kept + all_kept.graphs[0]))
    ways = stretches_of(module, 0)[::4]
    found = with_room(ways, *room)
    if found is None:
        return
    assert found.last <= room[0]
    assert found.kept + found.parts[-1].graph <= room[1]
    assert found.work_in_all < ways[0].work_without_graph
    if in_backward >= 1 <= between:
        assert (found.anchors, found.work_in_all) == ((), 0)


def test_more_room_is_never_more_work() -> None:
    module = whole("resnet20")
    ways = stretches_of(module, 0)[::4]
    rooms = [int(part * Stretches.at(module, 0, ()).last) for part in (0.35, 0.4, 0.6, 0.8, 1)]
    works = [way.work_in_all for room in rooms if (way := with_room(ways, room, room))]
    assert len(works) == 5
    assert works == sorted(works, reverse=True)
    assert works[0] > works[-1] == 0


def cost(budget: float, **settings: Any) -> tuple[int, int]:
    strategy = Strategy.of("bp", recompute="blocks", recompute_budget=budget, **settings)
    return Rehearsal(STAGE, strategy).cost(32)


STAGE = Stage(Workload("torchvision/resnet50", image=(3, 64, 64)))


def test_a_step_takes_about_the_budget_and_computes_less_and_less() -> None:
    plain = Rehearsal(STAGE, Strategy.of())
    peak, arithmetic = plain.cost(32)
    standing = sum(t.nbytes for _, t in plain.step.standing())
    costs = [cost(budget) for budget in (1, 1.5, 2, 3, 100)]
    least = costs[0][0] - standing
    for budget, (needed, _) in zip((1, 1.5, 2, 3), costs, strict=False):
        assert needed - standing < 1.15 * budget * least
    needed, computed = zip(*costs, strict=True)
    assert list(needed) == sorted(needed)
    assert list(computed) == sorted(computed, reverse=True)
    assert computed[-1] == arithmetic, "nothing is recomputed"
    assert needed[-1] < 1.001 * peak


@pytest.mark.parametrize("budget", [1.2, 1.7, 2.5, 100.0])
@pytest.mark.parametrize(
    "settings",
    [{"method": "bp"}, {"modules": 3, "cascade": 1}, {"modules": 4}, {"preset": "accurate"}],
    ids=["bp", "dgl", "dgl+hpff", "accurate"],
)
def test_gradients_are_those_of_the_least_to_the_bit(
    settings: dict[str, Any], budget: float
) -> None:
    if "preset" in settings:
        settings = {**settings, "modules": 10}
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
def test_gradients_are_the_references(method: str) -> None:
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    learner = LocalLearner(
        models.create("resnet20", width=8).double(),
        modules=3,
        example=images[:2],
        num_classes=10,
        method=method,
        recompute="blocks",
        recompute_budget=1.5,
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
