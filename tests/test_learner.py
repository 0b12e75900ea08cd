"""The learner beside what people do with models."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from naive.rule import flat_gradients, random_chain
from small_learners import IMAGES, TARGETS, hooks, random_learner, small
from torch import Tensor, nn

from hpff import LocalLearner, check_gradients, models
from hpff.memory import AllocationCounter
from hpff.methods import AuxiliaryContext, Method


def test_the_model_is_untouched() -> None:
    model = models.create("resnet20", width=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()

    learner = LocalLearner(
        model, modules=4, example=IMAGES[:2], num_classes=10, cascade=1, independent=True
    )

    assert not model.training
    assert learner.model is model
    assert learner.detach_model() is model
    assert hooks(model) == 0
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(before[name], v) for name, v in model.state_dict().items())
    torch.testing.assert_close(learner(IMAGES), model(IMAGES))


def test_hooks_are_gone_after_a_step() -> None:
    learner = small()
    learner.backward(IMAGES, TARGETS)
    assert hooks(learner.model) == 0


def test_hooks_are_gone_when_an_exception_flies() -> None:
    learner = small()
    with pytest.raises((IndexError, RuntimeError)):
        learner.backward(IMAGES, TARGETS + 1000)
    assert hooks(learner.model) == 0
    learner.zero_grad()
    assert check_gradients(learner.double(), IMAGES.double(), TARGETS) == {}


def test_running_statistics_move_once_a_step() -> None:
    learner = small(cascade=3)
    twin = copy.deepcopy(learner.model)

    learner.backward(IMAGES, TARGETS)
    twin(IMAGES)

    for (name, found), expected in zip(learner.model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)


def test_gradients_accumulate_over_several_backwards() -> None:
    learner = random_learner()
    halves = [(IMAGES[:3], TARGETS[:3]), (IMAGES[3:], TARGETS[3:])]
    expected = 0
    for images, targets in halves:
        learner.zero_grad()
        learner.backward(images.double(), targets % 4)
        expected = expected + 0.5 * flat_gradients(learner)

    learner.zero_grad()
    for images, targets in halves:
        learner.backward(images.double(), targets % 4, scale=0.5)

    torch.testing.assert_close(flat_gradients(learner), expected, rtol=1e-10, atol=1e-14)


class WithDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, 6, 3, padding=1), nn.Dropout(0.5), nn.Tanh())
            for c in (3, 6, 6)
        )
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def test_dropout_draws_one_mask_for_all_losses() -> None:
    model = WithDropout().double()
    learner = LocalLearner(model, modules=3, example=IMAGES[:2].double(), num_classes=10)
    assert check_gradients(learner, IMAGES.double(), TARGETS) == {}


@pytest.mark.parametrize("frozen", [["conv1", "bn1", "layer1"], ["layer2"], ["layer3", "fc"]])
def test_frozen_parameters_get_no_gradient_and_disturb_nothing(frozen: list[str]) -> None:
    model = models.create("resnet20", width=2).double()
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    learner = LocalLearner(model, modules=10, example=IMAGES[:2].double(), num_classes=10)

    assert check_gradients(learner, IMAGES.double(), TARGETS) == {}
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    assert sum(not p.requires_grad for p in model.parameters()) > 0


def test_freezing_after_wrapping() -> None:
    learner = random_learner()
    learner.model[1].requires_grad_(False)
    assert check_gradients(learner, IMAGES.double(), TARGETS % 4) == {}


def test_autocast_in_bf16() -> None:
    learner = small()
    with torch.autocast("cpu", torch.bfloat16):
        losses = learner.backward(IMAGES, TARGETS)
        assert check_gradients(learner, IMAGES, TARGETS) == {}
    assert losses.logits.dtype == torch.bfloat16
    assert {p.grad.dtype for p in learner.parameters()} == {torch.float32}


def test_channels_last_and_plain_layout_agree() -> None:
    found = []
    for layout in (torch.channels_last, torch.contiguous_format):
        torch.manual_seed(0)
        learner = small(patches=2).double()
        learner.model.to(memory_format=layout)
        learner.backward(IMAGES.double().to(memory_format=layout), TARGETS)
        found.append(flat_gradients(learner))
    torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda learner: pickle.loads(pickle.dumps(learner))],  # noqa: S301
    ids=["deepcopy", "pickle"],
)
def test_copies_train_by_themselves(duplicate: Callable[[LocalLearner], LocalLearner]) -> None:
    learner = random_learner()
    learner.backward(IMAGES.double(), TARGETS % 4)
    twin = duplicate(learner)
    twin.zero_grad()
    twin.backward(IMAGES.double(), TARGETS % 4)
    torch.testing.assert_close(flat_gradients(twin), flat_gradients(learner))
    with torch.no_grad():
        for parameter in twin.model.parameters():
            parameter.zero_()
    assert any(p.abs().max() > 0 for p in learner.model.parameters())


def test_state_dict_round_trip() -> None:
    learner, other = small(), small()
    buffer = io.BytesIO()
    torch.save(learner.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    learner.backward(IMAGES, TARGETS)
    other.backward(IMAGES, TARGETS)
    torch.testing.assert_close(flat_gradients(learner), flat_gradients(other))


def test_a_tuple_and_a_dict_of_inputs() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = random_chain(0, 4, norm=True, side=16)

        def forward(self, images: Tensor, scale: float = 1.0) -> Tensor:
            logits: Tensor = self.blocks(images * scale)
            return logits

    for inputs in ((IMAGES.double(), 2.0), {"images": IMAGES.double(), "scale": 2.0}):
        learner = LocalLearner(
            Scaled(), modules=["blocks.0", "blocks.1"], example=inputs, num_classes=4
        )
        assert check_gradients(learner, inputs, TARGETS % 4) == {}


def test_a_criterion_of_ones_own() -> None:
    def smoothed(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, label_smoothing=0.1)

    learner = random_learner(criterion=smoothed)
    losses = learner.backward(IMAGES.double(), TARGETS % 4)
    torch.testing.assert_close(losses.final, smoothed(losses.logits, TARGETS % 4))
    assert check_gradients(learner, IMAGES.double(), TARGETS % 4) == {}


def test_training_learns() -> None:
    """A floor and a ceiling: the network learns, and a lower part cut off from it would not."""
    torch.manual_seed(0)
    learner = small(modules=10)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.05, momentum=0.9)
    first = learner.backward(IMAGES, TARGETS).final
    for _ in range(60):
        optimizer.zero_grad()
        losses = learner.backward(IMAGES, TARGETS)
        optimizer.step()
    assert losses.final < 0.2 * first
    assert all(loss < 0.5 for loss in losses.cascade)
    assert all(loss < first for loss in losses.independent)


def test_parameters_that_the_example_did_not_reach_are_trained_all_the_same() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(3, 4)
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
            self.block = nn.Linear(4, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor, expert: int) -> Tensor:
            x = torch.tanh(self.stem(x))
            x = torch.tanh(self.experts[expert](x))
            return self.head(torch.tanh(self.block(x)))

    x, y = torch.randn(5, 3).double(), torch.tensor([0, 1, 1, 0, 1])
    model = Experts().double()
    learner = LocalLearner(model, modules=["stem", "block"], example=(x, 0), num_classes=2)
    for expert in (0, 1):
        assert check_gradients(learner, (x, expert), y) == {}
        learner.zero_grad()
        learner.backward((x, expert), y)
        assert model.experts[expert].weight.grad.any()
    assert set(learner.parameters()) == {p for group in learner.module_parameters for p in group}


class Convolutions(Method):
    """Reads whole maps, as PredSim and InfoPro do."""

    def auxiliary(self, context: AuxiliaryContext) -> nn.Module:
        channels = context.features[0]
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1), nn.Flatten(2), nn.Tanh(), Mean(), nn.Linear(4, 4)
        )


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(2)


@pytest.mark.parametrize("method", ["dgl", Convolutions()])
@pytest.mark.parametrize("side", [16, 15, 18, 24])
def test_images_of_another_size_than_the_example(method: object, side: int) -> None:
    learner = random_learner(method=method, patches=4, cascade=3)
    images = torch.randn(6, 3, side, side, dtype=torch.float64)
    for batch in (images, IMAGES.double()):
        assert check_gradients(learner, batch, TARGETS % 4) == {}


def test_reassigned_buffers_are_put_back() -> None:
    class Moving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chain = random_chain(0, 4, norm=True, side=16)
            self.register_buffer("mean", torch.zeros(3, 1, 1).double())

        def forward(self, x: Tensor) -> Tensor:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3)).view(3, 1, 1)
            return self.chain(x - self.mean)

    model = Moving()
    learner = LocalLearner(
        model, modules=["chain.0", "chain.1"], example=IMAGES.double(), num_classes=4
    )
    assert not model.mean.any()
    assert check_gradients(learner, IMAGES.double(), TARGETS % 4) == {}


def test_backprop_knows_no_level_weights() -> None:
    learner = random_learner(method="bp", independent_weight=0.1)
    losses = learner.backward(IMAGES.double(), TARGETS % 4)
    torch.testing.assert_close(losses.total, losses.final)


def test_a_step_leaves_nothing_behind() -> None:
    learner = random_learner()
    gc.disable()
    try:
        with AllocationCounter() as counter:
            left = []
            for _ in range(3):
                learner.backward(IMAGES.double(), TARGETS % 4)
                learner.zero_grad()
                left.append(counter.current)
        assert left[0] == left[1] == left[2]
    finally:
        gc.enable()


def test_steps_inside_one_autocast_block_use_fresh_weights() -> None:
    ends = []
    for blocks in (1, 3):
        torch.manual_seed(0)
        learner = small(modules=2)
        optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
        for _ in range(blocks):
            with torch.autocast("cpu", torch.bfloat16):
                for _ in range(3 // blocks):
                    optimizer.zero_grad()
                    losses = learner.backward(IMAGES, TARGETS)
                    optimizer.step()
        ends.append(losses.total)
    torch.testing.assert_close(ends[0], ends[1])


@pytest.mark.parametrize("cascade", [1, 2])
@pytest.mark.parametrize("side", [1, 8])
def test_a_group_norm_first_in_a_module_of_channels_last_maps(cascade: int, side: int) -> None:
    """PyTorch's own backward crashes there: its input wants no gradient in the last pass."""

    def block() -> nn.Module:
        return nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1), nn.Tanh())

    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), block(), block(), block(), head)
    model = model.double().to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, side, side, dtype=torch.float64)
    images = images.to(memory_format=torch.channels_last)
    learner = LocalLearner(model, modules=4, example=images, num_classes=3, cascade=cascade)
    assert check_gradients(learner, images, torch.tensor([0, 1, 2, 0])) == {}
