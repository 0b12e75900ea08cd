"""Every gradient equals that of a naive implementation of the update rule."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from naive.methods import METHODS
from naive.patches import WAYS
from naive.rule import naive_gradients, random_chain
from torch import Tensor, nn

from hpff import LocalLearner, check_gradients, models, reference_gradients
from hpff.errors import UserError


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Each gradient to ``tolerance`` of its own size (or of a ten-thousandth of the largest).

    A bias before a BatchNorm has gradient 0 but for rounding.
    """
    floor = 1e-4 * max(float(gradient.norm()) for gradient in expected.values())
    assert found.keys() == expected.keys()
    wrong = {
        name: float((found[name] - gradient).norm())
        for name, gradient in expected.items()
        if not (found[name] - gradient).norm() <= tolerance * max(float(gradient.norm()), floor)
    }
    assert not wrong


def gradients(learner: LocalLearner, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
    learner.zero_grad()
    learner.backward(images, targets)
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in learner.named_parameters()
    }


@settings(max_examples=120)
@given(
    method=st.sampled_from(sorted(METHODS)),
    seed=st.integers(0, 10_000),
    count=st.sampled_from([2, 3, 4, 5]),
    reach=st.sampled_from(["1", "2", "3", "K"]),
    independent=st.booleans(),
    patches=st.sampled_from([1, 2, 3]),
    smallest=st.integers(1, 3),
    norm=st.booleans(),
    side=st.sampled_from([4, 6, 7, 12]),
    mode_and_norm=st.sampled_from(WAYS),
    weights=st.tuples(st.floats(0.1, 2), st.floats(0.1, 2)),
    auxiliary_weight=st.one_of(st.just("level"), st.floats(0.1, 2)),
)
def test_gradients_equal_the_naive_rule(
    method: str,
    seed: int,
    count: int,
    reach: str,
    independent: bool,
    patches: int,
    smallest: int,
    norm: bool,
    side: int,
    mode_and_norm: tuple[str, str],
    weights: tuple[float, float],
    auxiliary_weight: float | str,
) -> None:
    k = count if reach == "K" else min(int(reach), count)
    independent = independent or k == 1
    torch.manual_seed(seed)
    model = random_chain(seed, count + seed % 3, norm=norm, side=side)
    images = torch.randn(5, 3, side, side, dtype=torch.float64)
    targets = torch.randint(4, (5,))
    ends = sorted(torch.randperm(len(model) - 1)[: count - 1].tolist())
    learner = LocalLearner(
        model,
        modules=[str(end) for end in ends],
        example=images[:2],
        num_classes=4,
        method=method,
        cascade=k,
        independent=independent,
        patches=patches,
        smallest_patch=smallest,
        patch_mode=mode_and_norm[0],
        patch_norm=mode_and_norm[1],
        independent_weight=weights[0],
        cascade_weight=weights[1],
        auxiliary_weight=auxiliary_weight,
    )
    for network in (*learner.independent_auxiliary.values(), *learner.cascade_auxiliary.values()):
        for parameter in network.parameters():
            nn.init.normal_(parameter, parameter.mean().item(), 0.3)  # PredSim's begin as zeros
    bounds = [0, *(end + 1 for end in ends), len(model)]
    modules = [model[a:b] for a, b in pairwise(bounds)]

    found = gradients(learner, images, targets)

    expected = naive_gradients(
        learner,
        modules,
        images,
        targets,
        k=k,
        independent=independent,
        weights=weights,
        auxiliary_weight=auxiliary_weight,
        method=method,
    )
    assert_same(found, expected, 1e-9)
    assert_same(reference_gradients(learner, images, targets), expected, 1e-9)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_reach_of_all_modules_without_independent_level_is_backprop(count: int) -> None:
    model = random_chain(3, 5, norm=True, side=8)
    images, targets = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.randint(4, (6,))
    learner = LocalLearner(
        model,
        modules=count,
        example=images[:2],
        num_classes=4,
        cascade=count,
        independent=False,
    )

    learner.backward(images, targets)

    loss = F.cross_entropy(model(images), targets)
    parameters = dict(model.named_parameters())
    expected = torch.autograd.grad(loss, list(parameters.values()))
    found = {name: p.grad for name, p in parameters.items()}
    assert_same(found, dict(zip(parameters, expected, strict=True)), 1e-12)


def test_backprop_is_a_method_and_equals_plain_backprop() -> None:
    model = random_chain(1, 4, norm=True, side=8)
    images, targets = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.randint(4, (6,))
    learner = LocalLearner(
        model, modules=3, example=images[:2], num_classes=4, method="bp", cascade=9, patches=4
    )

    losses = learner.backward(images, targets)

    loss = F.cross_entropy(model(images), targets)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    torch.testing.assert_close(losses.total, loss.detach())
    assert len(list(learner.parameters())) == len(list(model.parameters()))


def test_local_gradients_differ_from_backprop_and_stop_at_the_cuts() -> None:
    """The control: isolation that leaked would pass every test of equality above."""
    model = random_chain(5, 4, norm=False, side=8)
    images, targets = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.randint(4, (6,))
    kwargs = {"modules": 4, "example": images[:2], "num_classes": 4, "patches": 1}
    found = {}
    for k in (1, 2):
        learner = LocalLearner(model, cascade=k, **kwargs)
        for network in (
            *learner.independent_auxiliary.values(),
            *learner.cascade_auxiliary.values(),
        ):
            network.network.classifier.weight.data.zero_()  # auxiliary losses teach the backbone 0
        found[k] = gradients(learner, images, targets)
    for name, gradient in found[1].items():
        if name.startswith("model.") and not name.startswith("model.3"):
            assert gradient.abs().max() == 0, "plain local learning: the head's loss stays there"
    reached = {name.split(".")[1] for name, g in found[2].items() if "model." in name and g.any()}
    assert reached == {"2", "3"}, "k = 2: the head's loss reaches one module down, no further"


@pytest.mark.parametrize("name", ["resnet20", "resnet32"])
def test_resnets_in_as_many_modules_as_blocks(name: str) -> None:
    model = models.create(name, width=2).double()
    images, targets = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.randint(10, (4,))
    count = {"resnet20": 10, "resnet32": 16}[name]
    learner = LocalLearner(model, modules=count, example=images[:2], num_classes=10)

    assert check_gradients(learner, images, targets) == {}


def test_check_gradients_names_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.create("resnet20", width=2).double()
    images, targets = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.randint(10, (4,))
    learner = LocalLearner(model, modules=4, example=images[:2], num_classes=10)
    backward = learner.backward

    def wrong(*args: object, **kwargs: object) -> object:
        losses = backward(*args, **kwargs)
        model.layer2[0].conv1.weight.grad[0] *= 1.001
        return losses

    monkeypatch.setattr(learner, "backward", wrong)
    kept = [p.grad for p in learner.parameters()]

    assert list(check_gradients(learner, images, targets)) == ["model.layer2.0.conv1.weight"]
    assert [p.grad for p in learner.parameters()] == kept


def test_losses_are_those_of_the_rule() -> None:
    model = random_chain(2, 4, norm=True, side=8)
    images, targets = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.randint(4, (6,))
    learner = LocalLearner(
        model,
        modules=4,
        example=images[:2],
        num_classes=4,
        independent_weight=0.3,
        cascade_weight=0.6,
    )

    losses = learner.backward(images, targets)

    assert (len(losses.independent), len(losses.cascade)) == (4, 3)
    torch.testing.assert_close(losses.logits, model(images).detach())
    torch.testing.assert_close(losses.final, F.cross_entropy(losses.logits, targets))
    assert losses.independent[-1] is losses.final
    assert losses.cascade[-1] is losses.final
    total = 0.3 * sum(losses.independent) + 0.6 * sum(losses.cascade)
    torch.testing.assert_close(losses.total, total)
    assert not any(t.requires_grad for t in (losses.total, losses.logits, *losses.cascade))


def test_vectors_have_auxiliary_networks_too() -> None:
    model = nn.Sequential(
        nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)
    ).double()
    inputs, targets = torch.randn(8, 6, dtype=torch.float64), torch.randint(3, (8,))
    learner = LocalLearner(model, modules=3, example=inputs[:2], num_classes=3)

    assert [module.cut for module in learner.partition] == ["1", "3", None]
    assert check_gradients(learner, inputs, targets) == {}


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_modules_that_only_reshape(k: int) -> None:
    """Their cotangents and those of their inputs are views of one memory."""
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.Conv2d(3, 3, 3),
        nn.Flatten(),
        nn.Unflatten(1, (3, 4, 4)),
        nn.Flatten(),
        nn.Linear(48, 7),
        nn.Linear(7, 4),
    ).double()
    images, targets = torch.randn(5, 2, 8, 8, dtype=torch.float64), torch.randint(4, (5,))
    learner = LocalLearner(
        model,
        modules=["0", "1", "2", "3", "4", "5"],
        example=images[:2],
        num_classes=4,
        cascade=k,
        patches=1,
    )
    assert check_gradients(learner, images, targets) == {}


class AddsBias(nn.Module):
    """Hands the gradient of its output on as it is, and learns."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(4, 4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class Channels(nn.Module):
    """Puts the channels of maps last, or takes the mean over places."""

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1) if self.last else x.mean((1, 2))


@pytest.mark.parametrize("k", [2, 3, 4])
def test_a_cotangent_that_another_module_shares_is_not_changed(k: int) -> None:
    """Features that are a view of an output have its cotangent's memory, and so has the input's."""
    model = nn.Sequential(
        nn.Sequential(Channels(last=True), nn.Linear(3, 8), nn.Tanh()),
        nn.Sequential(nn.Linear(8, 8), nn.Tanh()),
        AddsBias(),
        nn.Sequential(nn.Linear(8, 8), nn.Tanh(), Channels(last=False), nn.Linear(8, 4)),
    ).double()
    images, targets = torch.randn(5, 3, 4, 4, dtype=torch.float64), torch.randint(4, (5,))
    learner = LocalLearner(
        model,
        modules=["0", "1", "2"],
        example=images[:2],
        num_classes=4,
        method="predsim",
        cascade=k,
        independent=False,
        patches=1,
        features=dict.fromkeys("012", "map-last"),
    )
    assert check_gradients(learner, images, targets) == {}


def test_a_single_layer_and_a_model_without_cuts() -> None:
    inputs, targets = torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 0, 1])
    for model in (nn.Linear(4, 3).double(), nn.Sequential(nn.Linear(4, 3)).double()):
        learner = LocalLearner(model, modules=1, example=inputs, num_classes=3, cascade=1)
        assert check_gradients(learner, inputs, targets) == {}
        with pytest.raises(UserError, match="1 to 1 modules"):
            LocalLearner(model, modules=2, example=inputs, num_classes=3)


def test_tied_weights_under_autocast_and_without() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
            self.blocks[3].weight = self.blocks[0].weight
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = torch.tanh(block(x))
            return self.head(x)

    inputs, targets = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        learner = LocalLearner(Tied(), modules=4, example=inputs, num_classes=3)
        assert check_gradients(learner, inputs, targets, tolerance=0.3) == {}
    assert check_gradients(learner.double(), inputs.double(), targets) == {}
