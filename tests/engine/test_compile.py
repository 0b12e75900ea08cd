"""Local learning with blocks and auxiliary networks that torch.compile has compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from naive.rule import flat_gradients, random_chain
from torch import Tensor, nn

from hpff import LocalLearner, check_gradients
from hpff.cutting.trace import is_compiled
from hpff.errors import UserError

IMAGES = torch.randn(
    6, 3, 16, 16, generator=torch.Generator(torch.get_default_device()).manual_seed(0)
).double()
TARGETS = torch.tensor([0, 1, 2, 3, 0, 1])
# The compiler looks at it.
looks_at_grad = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


def of_four(model: nn.Module, **settings: Any) -> LocalLearner:
    torch._dynamo.reset()
    return LocalLearner(model, modules=4, example=IMAGES[:2], num_classes=4, patches=1, **settings)


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_blocks_compiled_by_torch_compile(how: str) -> None:
    torch.manual_seed(0)
    plain = of_four(random_chain(0, 4, norm=True, side=16))
    torch.manual_seed(0)
    model = random_chain(0, 4, norm=True, side=16)
    for index in (0, 1, 2):
        if how == "wrapped":
            model[index] = torch.compile(model[index], backend="aot_eager")
        else:
            model[index].compile(backend="aot_eager")
    compiled = of_four(model)

    for learner in (plain, compiled):
        for _ in range(2):
            learner.zero_grad()
            losses = learner.backward(IMAGES, TARGETS)
        assert torch.isfinite(losses.total)

    torch.testing.assert_close(flat_gradients(compiled), flat_gradients(plain))
    assert check_gradients(compiled, IMAGES, TARGETS) == {}


@looks_at_grad
@pytest.mark.parametrize(
    "settings",
    [{}, {"cascade": 1}, {"patch_mode": "one-by-one"}, {"method": "predsim"}, {"method": "bp"}],
)
def test_compiled_training_gives_the_same_gradients(settings: dict[str, Any]) -> None:
    torch._dynamo.reset()

    def gradients(*, compiled: bool) -> Tensor:
        torch.manual_seed(0)
        model = random_chain(0, 3, norm=True, side=16)
        learner = LocalLearner(
            model, **{"modules": 3, "example": IMAGES[:2], "num_classes": 4, **settings}
        )
        if compiled:
            learner.compile(backend="aot_eager")
            assert learner.state_dict().keys() == keys
            assert any(is_compiled(module) for module in model.modules())
            networks = [*learner.independent_auxiliary.values()]
            networks += [*learner.cascade_auxiliary.values()]
            assert all(is_compiled(each) or is_compiled(each.network) for each in networks)
        keys.update(learner.state_dict().keys())
        for _ in range(2):
            learner.zero_grad()
            learner.backward(IMAGES, TARGETS)
        return flat_gradients(learner)

    keys: set[str] = set()
    torch.testing.assert_close(gradients(compiled=False), gradients(compiled=True))


def test_lean_training_is_not_compiled() -> None:
    learner = of_four(random_chain(0, 4, norm=True, side=16), recompute="repeatedly")
    with pytest.raises(UserError, match="compiled blocks cannot be recomputed"):
        learner.compile()


@looks_at_grad
def test_a_block_compiled_for_backprop_before_is_refused_and_mended_by_a_reset() -> None:
    """Its backward overwrites what it saved: differentiated twice, it would be silently wrong."""
    model = random_chain(0, 4, norm=True, side=16)
    model[1] = torch.compile(model[1], backend="aot_eager")
    torch._dynamo.reset()
    model(IMAGES).sum().backward()
    learner = LocalLearner(model, modules=4, example=IMAGES[:2], num_classes=4, patches=1)

    with pytest.raises(UserError, match=r"torch\.compiler\.reset"):
        learner.backward(IMAGES, TARGETS)
    torch.compiler.reset()
    assert check_gradients(learner, IMAGES, TARGETS) == {}
