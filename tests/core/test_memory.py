"""Memory: counted exactly, and bounded however deep the network is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hpff import LocalLearner, models
from hpff.memory import AllocationCounter, planned_peak

GIB = 2**30


def test_counter_follows_storages_to_their_death() -> None:
    kept = torch.zeros(100)
    with AllocationCounter() as counter:
        counter.track([kept])
        assert counter.current == 400
        view = (kept + 1).view(10, 10)
        assert counter.current == 800
        other = view.t()
        del view
        assert counter.current == 800
        del other
        assert counter.current == 400
        kept.add_(1)
    assert (counter.current, counter.peak) == (400, 800)


def step_peak(network: str, modules: int, **settings: Any) -> int:
    def build(images: Tensor, targets: Tensor) -> Any:
        learner = LocalLearner(
            models.create(network), modules=modules, example=images[:2], num_classes=10, **settings
        )
        optimizer = torch.optim.SGD(learner.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        return lambda: learner.backward(images, targets), optimizer

    return planned_peak(build, image=(3, 32, 32), batch=1024)


def test_deep_network_trains_in_a_ninth_of_the_memory() -> None:
    assert step_peak("resnet110", 55) <= 1.00 * GIB
    assert step_peak("resnet110", 55, method="bp") >= 8.0 * GIB


def working_memory(network: str, modules: int) -> int:
    """Peak bytes of a step that uses gradients up module by module, parameters left out."""
    with FakeTensorMode(), AllocationCounter() as counter:
        images, targets = torch.empty(1024, 3, 32, 32), torch.zeros(1024, dtype=torch.int64)
        learner = LocalLearner(
            models.create(network), modules=modules, example=images[:2], num_classes=10
        )
        groups = learner.module_parameters

        def free(j: int) -> None:
            for parameter in groups[j - 1]:
                parameter.grad = None

        held = counter.peak = counter.current
        learner.backward(images, targets, on_module_done=free)
    return counter.peak - held


@pytest.mark.timeout(600)
def test_memory_does_not_grow_with_depth_but_for_parameters() -> None:
    shallow, deep = working_memory("resnet110", 55), working_memory("resnet1202", 601)
    assert shallow > 0.7 * GIB
    assert abs(deep - shallow) < 0.001 * GIB


def test_plan_equals_what_a_real_step_allocates() -> None:
    planned = {}
    for fake in (True, False):
        with FakeTensorMode() if fake else torch.no_grad(), AllocationCounter() as counter:
            learner = LocalLearner(
                models.create("resnet20", width=4),
                modules=10,
                example=torch.zeros(2, 3, 16, 16),
                num_classes=10,
            )
            images, targets = torch.zeros(8, 3, 16, 16), torch.zeros(8, dtype=torch.int64)
            counter.peak = counter.current
            learner.backward(images, targets)
        planned[fake] = counter.peak
    assert planned[True] == planned[False]
