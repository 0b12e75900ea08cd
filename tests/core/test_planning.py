"""The plan of a step is what a real step allocates, in every way of training."""

from __future__ import annotations

import pytest
from torch import nn

from hpff import memory, models
from hpff.errors import UserError
from hpff.memory import Way, Workload
from hpff.memory.planning import Rehearsal, count, largest_batch
from hpff.memory.steps import TrainingStep


def small() -> nn.Module:
    return models.create("resnet20", width=4)


SMALL = Workload(small, modules=10, image=(3, 16, 16))
WAYS = [
    Way(),
    Way(segment=1),
    Way(segment=3),
    Way("dgl"),
    Way("dgl", cascade=2),
    Way("dgl", cascade=2, patches=2),
    Way("dgl", cascade=3, patches=2),
    Way("predsim", cascade=2, patches=2),
    Way("infopro"),
    Way("infopro", cascade=2, patches=2),
    Way("auglocal", cascade=2, patches=2),
]
OTHERS = [
    Workload(small, modules=10, image=(3, 16, 16), precision="bf16"),
    Workload(small, modules=4, image=(3, 16, 16), optimizer="adamw", step_per_module=True),
    Workload("timm/resnet10t", modules=3, image=(3, 64, 64)),
]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_plan_is_what_a_real_step_allocates(way: Way) -> None:
    assert_plan_is_real(SMALL, way)


@pytest.mark.parametrize("workload", OTHERS, ids=["bf16", "adamw", "timm"])
@pytest.mark.parametrize("way", [Way(), Way(segment=1), Way("dgl"), Way("infopro", 2, 2)], ids=str)
def test_plan_is_real_for_other_workloads(workload: Workload, way: Way) -> None:
    assert_plan_is_real(workload, way)


def assert_plan_is_real(workload: Workload, way: Way) -> None:
    """Every allocation and every release of a step on the CPU is in the plan, in its order."""
    planned = Rehearsal(workload, way).run(8)
    real = count(TrainingStep(workload.build(), workload, way), 8, workload.image)
    assert planned.curve() == real.curve()
    assert planned.peak == real.peak == max(real.curve())
    assert planned.at_peak() == real.at_peak()
    assert sum(planned.at_peak().values()) == planned.peak
