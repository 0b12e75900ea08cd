"""Each module runs forward once a step, and at most k modules' graphs are alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from naive.rule import random_chain
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from hpff import LocalLearner, models
from hpff.engine.schedule import Reach


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_each_module_runs_forward_once(k: int) -> None:
    model = random_chain(0, 5, norm=True, side=8)
    images, targets = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randint(4, (4,))
    learner = LocalLearner(model, modules=5, example=images[:2], num_classes=4, cascade=k)
    runs = {name: 0 for name, _ in model.named_modules() if name}

    def count(name: str) -> Any:
        def add(*_: Any) -> None:
            runs[name] += 1

        return add

    for name, module in model.named_modules():
        if name:
            module.register_forward_pre_hook(count(name))

    learner.backward(images, targets)

    assert set(runs.values()) == {1}


class _SavedTensors:
    """Which modules hold saved tensors for a backward, at any moment."""

    def __init__(self) -> None:
        self.module = 1
        self.alive: dict[int, int] = {}
        self.most = 0

    def pack(self, tensor: Tensor) -> Any:
        module = self.module
        self.alive[module] = self.alive.get(module, 0) + 1
        self.most = max(self.most, sum(count > 0 for count in self.alive.values()))
        box = _Box(tensor)

        def forget() -> None:
            self.alive[module] -= 1

        weakref.finalize(box, forget)
        return box


class _Box:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@pytest.mark.parametrize("k", [1, 2, 3, 4, 10])
@pytest.mark.parametrize("independent", [True, False])
def test_never_more_than_k_graphs_are_alive(k: int, independent: bool) -> None:
    model = models.create("resnet20", width=2)
    images, targets = torch.randn(4, 3, 8, 8), torch.randint(10, (4,))
    learner = LocalLearner(
        model,
        modules=10,
        example=images[:2],
        num_classes=10,
        cascade=k,
        independent=independent or k == 1,
    )
    saved = _SavedTensors()

    def starts(j: int) -> Any:
        def note(*_: Any) -> None:
            saved.module = j

        return note

    blocks = [b for stage in (model.layer1, model.layer2, model.layer3) for b in stage]
    for j, block in enumerate(blocks, start=2):
        block.register_forward_pre_hook(starts(j))
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda box: box.tensor):
        learner.backward(images, targets)

    assert saved.most == k
    assert not any(saved.alive.values())


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_modules_are_done_in_order_once_their_gradients_are_final(k: int) -> None:
    model = random_chain(0, 4, norm=True, side=8)
    images, targets = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randint(4, (4,))
    learner = LocalLearner(model, modules=4, example=images[:2], num_classes=4, cascade=k)
    at_done: dict[int, list[Tensor]] = {}

    def keep(j: int) -> None:
        at_done[j] = [p.grad.clone() for p in learner.module_parameters[j - 1]]

    learner.backward(images, targets, on_module_done=keep)

    assert list(at_done) == learner.reach.completion_order()
    for j, found in at_done.items():
        for parameter, gradient in zip(learner.module_parameters[j - 1], found, strict=True):
            assert torch.equal(parameter.grad, gradient)
    everything = [p for parameters in learner.module_parameters for p in parameters]
    assert set(everything) == set(learner.parameters())
    assert len(everything) == len(set(everything))


def train(per_module: bool, steps: int = 3) -> tuple[Tensor, int]:
    """The weights after some steps, and the most gradients that were alive at a module's end."""
    torch.manual_seed(0)
    images, targets = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randint(4, (4,))
    model = random_chain(0, 4, norm=True, side=8)
    learner = LocalLearner(model, modules=4, example=images[:2], num_classes=4)
    groups = learner.module_parameters
    optimizers = [torch.optim.SGD(group, lr=0.1, momentum=0.9) for group in groups]
    alive = []

    def step(j: int) -> None:
        alive.append(sum(p.grad is not None for p in learner.parameters()))
        optimizers[j - 1].step()
        optimizers[j - 1].zero_grad()

    for _ in range(steps):
        learner.backward(images, targets, on_module_done=step if per_module else None)
        if not per_module:
            for j in range(1, 5):
                step(j)
    return torch.cat([p.detach().flatten() for p in learner.parameters()]), max(alive)


def test_an_optimizer_step_per_module_frees_gradients_and_changes_nothing() -> None:
    weights, all_alive = train(per_module=False)
    same, few_alive = train(per_module=True)
    torch.testing.assert_close(same, weights, rtol=1e-12, atol=1e-12)
    assert few_alive < 0.7 * all_alive


def test_shared_parameters_are_done_with_the_last_module_that_uses_them() -> None:
    shared = nn.Linear(5, 5)
    model = nn.Sequential(
        nn.Sequential(shared, nn.Tanh()),
        nn.Sequential(nn.Linear(5, 5), nn.Tanh()),
        nn.Sequential(shared, nn.Tanh()),
        nn.Linear(5, 3),
    ).double()
    x = torch.randn(2, 5, dtype=torch.float64)
    learner = LocalLearner(model, modules=4, example=x, num_classes=3, cascade=1)

    assert shared.weight not in set(learner.module_parameters[0])
    assert shared.weight in set(learner.module_parameters[2])


def test_reach_may_differ_from_module_to_module() -> None:
    reach = Reach((1, 2, 1, 3))
    assert reach.last_use == (2, 4, 4, 4)
    assert reach.carried_through == (False, True, True, True)
    assert reach.completion_order() == [1, 4, 3, 2]
    assert Reach.uniform(4, 2).last_use == (2, 3, 4, 4)


class _Noting(torch.autograd.Function):
    """Notes the gradients that pass, without holding them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, act: Callable[[Tensor], None]) -> Tensor:
        ctx.act = act
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        ctx.act(gradient)
        return gradient, None


class _Noted(nn.Module):
    """A block whose gradients are noted: at its input, and before its last layer."""

    def __init__(self, begins: Callable[[Tensor], None], inside: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.acts = begins, inside
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(_Noting.apply(x, self.acts[0]))  # type: ignore[no-untyped-call]
        return torch.tanh(_Noting.apply(x, self.acts[1]))  # type: ignore[no-untyped-call]


def test_a_cascades_gradient_goes_when_the_module_below_has_used_it() -> None:
    passed: list[StorageWeakRef] = []
    gone: list[bool] = []

    def begins(gradient: Tensor) -> None:
        passed.append(StorageWeakRef(gradient.untyped_storage()))

    def inside(_: Tensor) -> None:
        gone.append(passed[-1].expired() if passed else True)

    model = nn.Sequential(*(_Noted(begins, inside) for _ in range(4)), nn.Linear(8, 3))
    learner = LocalLearner(
        model,
        modules=["0", "1", "2", "3"],
        example=torch.randn(2, 8),
        num_classes=3,
        cascade=[1, 1, 1, 4, 2],
        independent=False,
    )
    passed.clear()
    gone.clear()
    learner.backward(torch.randn(6, 8), torch.randint(3, (6,)))
    assert len(gone) == 5
    assert all(gone)
