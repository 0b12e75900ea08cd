"""What fits a budget, and the arithmetic that it takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hpff.errors import UserError
from hpff.memory import ArithmeticCounter, Choice, Fit, Strategy, Workload, fit
from hpff.memory.rehearsal import Rehearsal


def block(before: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())


def small() -> nn.Module:
    blocks = [block(3), *(block(8) for _ in range(7))]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


SMALL = Workload(small)


def test_with_room_for_all_graphs_nothing_is_recomputed() -> None:
    found = fit(SMALL, batch=8, budget=2**40)
    assert found.best is not None
    assert found.best.modules == 2
    assert len(found.tried) == 1, "more modules are tried only where fewer do not fit"
    assert found.best.strategy.settings.recompute == "never"
    assert all(choice.fits for choice in found.baselines)
    assert found.to_plain()["workload"]["model"] == "small"


def test_in_less_than_checkpointing_takes_modules_are_recomputed() -> None:
    checkpointing = fit(SMALL, batch=64, budget=2**40).baselines[1]
    kept = fit(SMALL, batch=64, budget=int(0.9 * checkpointing.peak)).best
    assert kept is not None
    assert kept.strategy.settings.recompute == "never"
    found = fit(SMALL, batch=64, budget=kept.peak - 1)
    assert not any(choice.fits for choice in found.baselines[:2])
    assert found.best is not None
    workload = Workload(small, modules=found.best.modules, balance="memory")
    assert found.best.peak == Rehearsal(workload, found.best.strategy).peak(64) <= found.budget
    assert found.best.strategy.settings.recompute in ("once", "blocks")


def test_nearest_to_backprop_is_backprop_itself_as_long_as_a_way_to_do_it_fits() -> None:
    for budget in (choice.peak for choice in fit(SMALL, batch=64, budget=2**40).baselines):
        found = fit(SMALL, batch=64, budget=budget)
        assert found.nearest == min(
            (choice for choice in found.baselines if choice.fits), key=lambda c: c.operations
        )
        assert not any(choice.preset for choice in found.tried), "none is tried"


def test_room_that_the_leanest_way_leaves_is_used_to_recompute_less() -> None:
    plain, _, by_blocks = fit(SMALL, batch=64, budget=2**40).baselines
    between = (plain.peak + by_blocks.peak) // 2
    found = fit(SMALL, batch=64, budget=between)
    assert [choice.fits for choice in found.baselines[2:]] == [True, True]
    roomy = found.baselines[3]
    assert by_blocks.peak < roomy.peak <= between
    assert plain.operations <= roomy.operations < by_blocks.operations
    assert roomy.strategy.settings.recompute_budget > 1
    assert roomy.peak == Rehearsal(SMALL, roomy.strategy).peak(64)
    assert len(fit(SMALL, batch=64, budget=by_blocks.peak).baselines) == 3, "there is none left"


def test_otherwise_it_is_the_first_preset_that_fits() -> None:
    leanest = min(choice.peak for choice in fit(SMALL, batch=64, budget=2**40).baselines)
    found = fit(SMALL, batch=64, budget=leanest - 1)
    assert found.nearest is not None
    assert (found.nearest.preset, found.nearest.fits) == ("light", True)
    before = [choice for choice in found.tried if choice.preset in ("accurate", "balanced")]
    assert before
    assert not any(choice.fits for choice in before)
    assert all(choice.modules > 4 for choice in before), "one cascade of all is backprop"
    plain = found.to_plain()["nearest"]
    assert plain["label"] == str(found.nearest.strategy)
    assert (plain["preset"], plain["balance"]) == ("light", "memory")


def test_without_presets_there_is_none() -> None:
    found = fit(SMALL, batch=64, budget=1, presets=())
    assert found.nearest is None
    assert not any(choice.preset for choice in found.tried)


def test_presets_with_longer_cascades_than_there_are_blocks_are_left_out() -> None:
    def shallow() -> nn.Module:
        blocks = block(3), *(block(8) for _ in range(3))
        return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(8 * 64, 10))

    found = fit(Workload(shallow, image=(3, 8, 8)), batch=8, budget=2**16)
    assert found.best is None
    assert {choice.preset for choice in found.tried} == {"light", None}


def test_the_best_fits_and_computes_least() -> None:
    plain = Strategy.of("dgl", 2, 2)
    tried = (
        Choice(plain, 2, peak=90, operations=1.1, fits=False),
        Choice(plain, 4, peak=60, operations=1.4, fits=True),
        Choice(plain, 8, peak=50, operations=1.3, fits=True),
        Choice(plain, 16, peak=40, operations=1.5, fits=True),
    )
    assert Fit(SMALL, 8, 64, (), tried, None).best is tried[2]


def test_where_nothing_fits_it_says_which_batch_would() -> None:
    found = fit(SMALL, batch=512, budget=8 * 2**20, presets=())
    assert found.best is None
    assert found.largest_batch is not None
    assert 2 <= found.largest_batch < 512


def test_no_local_learning_is_tried_where_parameters_alone_do_not_fit() -> None:
    model = SMALL.build()
    standing = sum(p.nbytes for p in (*model.parameters(), *model.parameters(), *model.buffers()))
    found = fit(SMALL, batch=8, budget=standing - 1, presets=("light",))
    assert (found.tried, found.nearest, found.largest_batch) == ((), None, 0)
    assert found.standing == standing == found.to_plain()["standing_bytes"]
    assert fit(SMALL, batch=8, budget=standing, presets=("light",)).tried


def test_wrong_workloads_are_refused() -> None:
    with pytest.raises(UserError, match="batch is 1; expected 2 or more"):
        fit(SMALL, batch=1, budget=2**30)
    with pytest.raises(UserError, match="method is 'bp'; expected one of local learning"):
        fit(SMALL, batch=2, budget=2**30, method="bp")
    with pytest.raises(UserError, match="unknown model"):
        fit(Workload("resnet7"), batch=2, budget=2**30)


def test_arithmetic_is_the_formulas() -> None:
    """By hand: a grouped convolution, a matrix product, attention; forward and backward."""
    images = torch.randn(2, 8, 5, 5, requires_grad=True)
    convolution = nn.Conv2d(8, 12, 3, padding=1, groups=4, bias=False)
    forward = 2 * 2 * 25 * 12 * 2 * 9
    with ArithmeticCounter() as counter:
        convolution(images).sum().backward()
    assert counter.total == 3 * forward
    rows = torch.randn(6, 7)
    with ArithmeticCounter() as counter:
        nn.Linear(7, 3, bias=False)(rows).sum().backward()
    assert counter.total == 2 * (2 * 6 * 7 * 3), "no gradient of the input is asked for"
    query = torch.randn(2, 3, 5, 4)
    with ArithmeticCounter() as counter:
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert counter.total == 2 * (2 * 2 * 3 * 5 * 5 * 4)


def test_recomputation_costs_what_the_documents_say() -> None:
    """In parts of backprop, whose forward is a third: once more for one backward, or for two."""
    base = Rehearsal(SMALL, Strategy.of()).cost(8)[1]
    hpff = Strategy.of("dgl", 2, 2)
    workload = Workload(small, modules=4, balance="memory")
    never, once, blocks, repeatedly = (
        Rehearsal(workload, hpff.with_settings(recompute=way)).cost(8)[1] / base
        for way in ("never", "once", "blocks", "repeatedly")
    )
    assert never < once < never + 1 / 3
    assert never < blocks < never + 2 / 3
    assert repeatedly > blocks
