from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from hpff import LocalLearner, models
from hpff.recipes.recipe import OptimizerRecipe
from hpff.training.optimizer import ModuleOptimizers

SETTINGS = OptimizerRecipe(lr=0.1, weight_decay=1e-3)


def learner(method: str = "dgl") -> LocalLearner:
    model = models.create("resnet20", in_channels=1, width=4).double()
    return LocalLearner(
        model,
        modules=4,
        example=torch.zeros(2, 1, 8, 8, dtype=torch.float64),
        num_classes=10,
        method=method,
        cascade=2,
        patches=2,
    ).double()


def step(learner: LocalLearner, optimizers: ModuleOptimizers, batch: tuple[Tensor, Tensor]) -> None:
    optimizers.zero_grad()
    learner.backward(*batch, on_module_done=optimizers.module_done)
    optimizers.step()


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    return [
        (torch.randn(8, 1, 8, 8, dtype=torch.float64), torch.randint(10, (8,)))
        for _ in range(count)
    ]


@pytest.mark.parametrize("method", ["dgl", "bp"])
def test_stepping_each_module_gives_the_weights_of_one_step(method: str) -> None:
    one = learner(method)
    each = copy.deepcopy(one)
    pairs = [
        (part, ModuleOptimizers(part.module_parameters, SETTINGS, per_module=per_module))
        for part, per_module in ((one, False), (each, True))
    ]
    for batch in batches(4):
        for part, optimizers in pairs:
            step(part, optimizers, batch)
    for (name, a), b in zip(one.state_dict().items(), each.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=name)


def test_a_modules_gradients_are_freed_when_it_is_done() -> None:
    part = learner()
    optimizers = ModuleOptimizers(part.module_parameters, SETTINGS, per_module=True)
    modules = part.module_parameters
    seen = []

    def done(module: int) -> None:
        before = [parameter.grad is not None for parameter in modules[module - 1]]
        optimizers.module_done(module)
        after = [parameter.grad is None for parameter in modules[module - 1]]
        seen.append((module, all(before), all(after)))

    part.backward(*batches(1)[0], on_module_done=done)
    assert sorted(seen) == [(module, True, True) for module in range(1, 5)]


@pytest.mark.parametrize("per_module", [False, True])
def test_state_goes_on_exactly(per_module: bool) -> None:
    torch.manual_seed(1)
    first, data = learner(), batches(4)
    optimizers = ModuleOptimizers(first.module_parameters, SETTINGS, per_module=per_module)
    for batch in data[:2]:
        step(first, optimizers, batch)
    second = copy.deepcopy(first)
    again = ModuleOptimizers(second.module_parameters, SETTINGS, per_module=per_module)
    again.load_state_dict(copy.deepcopy(optimizers.state_dict()))
    for batch in data[2:]:
        step(first, optimizers, batch)
        step(second, again, batch)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_state_of_other_modules_is_refused() -> None:
    part = learner()
    each = ModuleOptimizers(part.module_parameters, SETTINGS, per_module=True)
    one = ModuleOptimizers(part.module_parameters, SETTINGS, per_module=False)
    with pytest.raises(ValueError, match="4 optimizer states for 1 optimizers"):
        one.load_state_dict(each.state_dict())


def test_the_rate_is_set_everywhere() -> None:
    part = learner()
    optimizers = ModuleOptimizers(part.module_parameters, SETTINGS)
    optimizers.set_rate(0.0)
    before = copy.deepcopy(dict(part.named_parameters()))
    step(part, optimizers, batches(1)[0])
    for name, parameter in part.named_parameters():
        assert torch.equal(parameter, before[name])


def test_a_frozen_module_steps() -> None:
    frozen = torch.nn.Parameter(torch.ones(1), requires_grad=False)
    optimizers = ModuleOptimizers([[], [frozen]], SETTINGS)
    optimizers.zero_grad()
    optimizers.module_done(1)
    optimizers.module_done(2)
    optimizers.step()
    assert frozen.item() == 1


HELD = [
    SETTINGS,
    OptimizerRecipe(name="adamw", lr=0.01, momentum=0.0, nesterov=False, weight_decay=1e-3),
]


@pytest.mark.parametrize("settings", HELD, ids=["sgd", "adamw"])
def test_a_rate_that_is_held_on_the_device_gives_the_same_weights(
    settings: OptimizerRecipe,
) -> None:
    """And the state of one goes on in the other."""
    told = learner()
    held = copy.deepcopy(told)
    device = torch.device("cpu")
    pairs = [
        (told, ModuleOptimizers(told.module_parameters, settings)),
        (held, ModuleOptimizers(held.module_parameters, settings, rate_on=device)),
    ]
    data = batches(5)
    for number, batch in enumerate(data):
        for part, optimizers in pairs:
            optimizers.set_rate(2.0 ** -(6 + number))
            step(part, optimizers, batch)
        if number == 2:  # They change places.
            states = [copy.deepcopy(optimizers.state_dict()) for _, optimizers in pairs]
            for (_, optimizers), state in zip(pairs, reversed(states), strict=True):
                optimizers.load_state_dict(state)
    torch.testing.assert_close(told.state_dict(), held.state_dict(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("settings", HELD, ids=["sgd", "adamw"])
def test_a_state_that_is_loaded_is_where_the_parameters_are(settings: OptimizerRecipe) -> None:
    """Also AdamW's count of steps; the meta device stands in for a GPU."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizers = ModuleOptimizers([[parameter]], settings)
    parameter.grad = torch.ones(3)
    optimizers.module_done(1)
    there = torch.nn.Parameter(torch.ones(3, device="meta"))
    held = ModuleOptimizers([[there]], settings, rate_on=torch.device("meta"))
    states = optimizers.state_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModuleOptimizers, "state_dict", lambda _: states)  # meta has no numbers
        held.load_state_dict(states)
    assert {tensor.device.type for tensor in held.state_tensors()} == {"meta"}
