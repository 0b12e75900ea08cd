"""Memory: counted exactly, and bounded however deep the network is."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hpff import LocalLearner, models
from hpff.memory import AllocationCounter, Strategy, Workload, plan

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


def peaks(network: str, modules: int, *strategies: Strategy) -> list[float]:
    """Planned peaks in GiB at batch 1024."""
    rows = plan(Workload(network, modules), batch=1024, strategies=strategies).rows
    return [(row.peak or 0) / GIB for row in rows]


def test_deep_network_trains_in_a_ninth_of_the_memory_and_recomputed_takes_half_of_that() -> None:
    hpff = Strategy.of("dgl", cascade=2, patches=2)
    bp, usual = peaks("resnet110", 55, Strategy.of(), hpff)
    assert bp >= 8.0
    assert usual <= 0.85
    usual, once, repeatedly = peaks(
        "resnet32",
        16,
        hpff,
        hpff.with_settings(recompute="once"),
        hpff.with_settings(recompute="repeatedly"),
    )
    assert usual <= 0.80
    assert once <= 0.55
    assert repeatedly <= 0.42


def working_memory(depth: int) -> int:
    """Peak bytes of a step that uses gradients up module by module, parameters left out."""
    with FakeTensorMode(), AllocationCounter() as counter:
        images, targets = torch.empty(1024, 3, 32, 32), torch.zeros(1024, dtype=torch.int64)
        learner = LocalLearner(
            models.CifarResNet(depth), modules=depth // 2, example=images[:2], num_classes=10
        )
        groups = learner.module_parameters

        def free(j: int) -> None:
            for parameter in groups[j - 1]:
                parameter.grad = None

        held = counter.peak = counter.current
        learner.backward(images, targets, on_module_done=free)
    return counter.peak - held


def test_memory_does_not_grow_with_depth_but_for_parameters() -> None:
    shallow, deep = working_memory(20), working_memory(32)
    assert shallow > 0.5 * GIB
    assert abs(deep - shallow) < 0.001 * GIB
