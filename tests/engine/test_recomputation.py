"""Recomputation: the same gradients, bit for bit, from graphs without content."""

from __future__ import annotations

import copy
import gc
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hpff import LocalLearner, check_gradients, models
from hpff.cutting.local_modules import InnerPoint, OperationKey
from hpff.engine.anchors import Kept
from hpff.engine.phase import Phase
from hpff.engine.recomputation import FreedTensors, Recompute, Tape
from hpff.errors import UserError

IMAGES = (6, 3, 16, 16)
Build = Callable[[], nn.Module]


def resnet() -> nn.Module:
    return models.create("resnet20", width=4)


def step(
    build: Build, images: Tensor, *, recompute: Recompute, bf16: bool = False, **settings: Any
) -> Any:
    """Everything that a step leaves behind: losses, gradients, buffers, random state."""
    torch.manual_seed(0)
    settings = {"patches": 2, "patch_mode": "together", **settings}
    learner = LocalLearner(
        build(), example=images[:2], num_classes=10, recompute=recompute, **settings
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        losses = learner.backward(images, torch.arange(len(images)))
    gradients = {name: parameter.grad for name, parameter in learner.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in learner.named_buffers()}
    return {"total": losses.total, "random": torch.rand(3), **gradients, **buffers}


def assert_recomputed_is_exact(
    build: Build, shape: tuple[int, ...] = IMAGES, **settings: Any
) -> None:
    torch.manual_seed(1)
    images = torch.randn(shape)
    same: Callable[[Tensor, Tensor], bool] = torch.equal
    if images.is_cuda and settings.get("method") == "infopro":
        same = partial(torch.allclose, rtol=1e-4, atol=1e-6)  # enlarging adds up in no fixed order
    usual = step(build, images, recompute="never", **settings)
    for way in ("repeatedly", "once", "blocks"):
        recomputed = step(build, images, recompute=way, **settings)
        for name, expected in usual.items():
            assert (recomputed[name] is None) == (expected is None), name
            assert expected is None or same(recomputed[name], expected), name


@pytest.mark.parametrize("method", ["dgl", "predsim", "infopro", "auglocal", "man"])
@pytest.mark.parametrize("cascade", [1, 2, 3])
def test_it_is_exact_for_every_method_and_cascade(method: str, cascade: int) -> None:
    assert_recomputed_is_exact(resnet, modules=5, method=method, cascade=cascade)


def test_it_is_exact_without_the_independent_level_and_for_one_module() -> None:
    assert_recomputed_is_exact(resnet, modules=4, cascade=4, independent=False)
    assert_recomputed_is_exact(resnet, modules=1, method="bp")


@pytest.mark.parametrize(
    "name",
    [
        "resnet50",
        "torchvision/densenet121",
        "timm/convnext_atto",
        "timm/efficientnet_b0",
        "timm/vit_tiny_patch16_224",
    ],
)
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_backprop_by_blocks_is_backprop_bit_for_bit(name: str, bf16: bool) -> None:
    shape = (2, 3, 224, 224) if "vit" in name else (2, 3, 64, 64)
    images, targets = torch.randn(shape), torch.tensor([1, 3])
    model = models.create(name, 10).train()
    recomputed = copy.deepcopy(model)
    learner = LocalLearner(
        recomputed, method="bp", recompute="blocks", example=images, num_classes=10
    )
    assert learner.kept[0].anchors
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = F.cross_entropy(model(images), targets)
    loss.backward()
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        assert torch.equal(learner.backward(images, targets).final, loss)
    for (given, mine), (_, theirs) in zip(
        recomputed.named_parameters(), model.named_parameters(), strict=True
    ):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert torch.equal(mine.grad, theirs.grad), given
    for mine, theirs in zip(recomputed.buffers(), model.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_it_is_exact_in_bf16() -> None:
    assert_recomputed_is_exact(resnet, modules=4, bf16=True)


class Noisy(nn.Module):
    """A layer with everything that must not happen twice: dropout, noise, running statistics."""

    seen: Tensor

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.linear = nn.Linear(before, after)
        self.norm = nn.BatchNorm1d(after)
        self.register_buffer("seen", torch.ones(after))

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.norm(self.linear(x)), 0.3) + torch.randn(self.seen.shape)
        x = x + self.seen  # read, then changed
        with torch.no_grad():
            self.seen.mul_(0.9).add_(0.1 * x.mean(0))
        return F.leaky_relu_(x, 0.2)


def test_it_draws_the_same_numbers_and_moves_buffers_once() -> None:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Flatten(), Noisy(768, 9), Noisy(9, 9), Noisy(9, 9), nn.Linear(9, 10)
        )

    assert_recomputed_is_exact(build, modules=3)


def test_it_is_exact_where_the_next_module_overwrites_its_input() -> None:
    def build() -> nn.Module:
        layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)]
        for _ in range(3):
            layers += [nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 256, 10))

    assert_recomputed_is_exact(build, modules=["1", "4", "7"])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("timm/vit_tiny_patch16_224", {"img_size": 64, "depth": 4, "drop_path_rate": 0.2}),
        ("torchvision/efficientnet_b0", {}),
    ],
)
def test_it_is_exact_for_other_models(name: str, settings: dict[str, Any]) -> None:
    assert_recomputed_is_exact(lambda: models.create(name, **settings), (4, 3, 64, 64), modules=4)


class Chunked(nn.Module):
    """Parts of one storage, of which each has a version of its own and one is changed in place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.linear(x).unsafe_chunk(2, 1)
        return gate.sigmoid_() * value.tanh_() + x


class Recurrent(nn.Module):
    """The last of what a recurrent network says of three times the same."""

    def __init__(self, kind: Callable[..., nn.Module], width: int) -> None:
        super().__init__()
        self.network = kind(width, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        said: Tensor = self.network(x[:, None].expand(-1, 3, -1))[0]
        return said[:, -1] + x


class Cell(nn.Module):
    """One step of a recurrent network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(width, width)

    def forward(self, x: Tensor) -> Tensor:
        said: Tensor = self.cell(x, x)
        return said + x


@pytest.mark.parametrize("cascade", [1, 2])
@pytest.mark.parametrize(
    "layer", [Chunked, Cell, partial(Recurrent, nn.GRU), partial(Recurrent, nn.LSTM)]
)
def test_it_is_exact_for_recurrent_networks(
    layer: Callable[[int], nn.Module], cascade: int
) -> None:
    """Their gates are changed in place behind autograd's back; an LSTM keeps a workspace."""

    def build() -> nn.Module:
        layers = (layer(16) for _ in range(4))
        return nn.Sequential(nn.Linear(12, 16), *layers, nn.Linear(16, 10))

    settings = {"patches": 1, "cascade": cascade}
    assert_recomputed_is_exact(build, (8, 12), modules=["1", "3"], **settings)


@pytest.mark.parametrize("recompute", ["repeatedly", "once", "blocks"])
def test_a_value_that_is_written_over_afterwards_is_made_again(recompute: Recompute) -> None:
    x, weight = torch.randn(4, 4), torch.ones(4, 4, requires_grad=True)
    tape = Tape(None, FreedTensors(), Phase(), recompute)
    tape.start()
    made = x.tanh()
    loss = (weight * made).sum()
    torch.mm(x, x, out=made.data)
    tape.stop()
    with tape.backward(last=True):
        (gradient,) = torch.autograd.grad(loss, weight)
    assert torch.equal(gradient, x.tanh())


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(6),
        nn.BatchNorm2d(6, affine=False),
        nn.BatchNorm2d(6, momentum=None),
        nn.BatchNorm2d(6, track_running_stats=False),
        nn.BatchNorm2d(6).eval(),
    ],
    ids=["usual", "no weights", "cumulative", "no statistics", "frozen"],
)
@pytest.mark.parametrize("bf16", [False, True])
def test_batch_norm_runs_again_as_it_ran(norm: nn.BatchNorm2d, bf16: bool) -> None:
    def build() -> nn.Module:
        blocks = [
            nn.Sequential(nn.Conv2d(3 if not i else 6, 6, 3, padding=1), deepcopy(norm), nn.ReLU())
            for i in range(5)
        ]
        return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(6 * 64, 10))

    assert_recomputed_is_exact(build, (4, 3, 8, 8), modules=3, bf16=bf16)
    assert_recomputed_is_exact(build, (4, 3, 8, 8), modules=1, method="bp", bf16=bf16)


@pytest.mark.parametrize("recompute", ["blocks", "once", "repeatedly"])
def test_its_gradients_are_the_references(recompute: Recompute) -> None:
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    learner = LocalLearner(
        resnet().double(), modules=4, example=images[:2], num_classes=10, recompute=recompute
    )
    assert not check_gradients(learner, images, torch.arange(4))


def test_an_anchor_that_is_changed_in_place_is_one_no_more() -> None:
    """As where the model does on a batch what it did not do on the example."""
    layer, x = nn.Linear(4, 4), torch.randn(3, 4)

    def forward() -> Tensor:
        first = layer(x)
        second = torch.tanh(first)
        return (second * second + first.mul_(2)).sum()

    point = InnerPoint(OperationKey("aten.addmm.default", 1), 0, 48, 0)
    tape = Tape(None, FreedTensors(), Phase(), "blocks", Kept((point,)))
    tape.start()
    loss = forward()
    tape.stop()
    with tape.backward():
        found = torch.autograd.grad(loss, layer.weight)
    assert torch.equal(found[0], torch.autograd.grad(forward(), layer.weight)[0])


class Calls(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.of: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.of[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_what_is_made_again_waits_for_no_use_and_is_the_same() -> None:
    first, second, x = nn.Linear(4, 400), nn.Linear(400, 4), torch.randn(3, 4)
    weights = [first.weight, second.weight]

    def forward() -> Tensor:
        return second(F.silu(first(x))).sum()

    expected = torch.autograd.grad(forward(), weights)
    runs = []
    for again in (frozenset[OperationKey](), frozenset({OperationKey("aten.addmm.default", 1)})):
        tape = Tape(x, FreedTensors(), Phase(), "blocks", Kept(made_again=again))
        tape.start()
        loss = forward()
        tape.stop()
        with Calls() as calls, tape.backward():
            found = torch.autograd.grad(loss, weights)
        assert all(map(torch.equal, found, expected))
        runs.append((calls.of["addmm"], calls.of["silu"]))
    assert runs == [(1, 1), (2, 1)]


class ReadsAgain(nn.Module):
    """Looks at an early feature once more at the end, which no gradient passes."""

    def __init__(self, *, again: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4))
        self.head = nn.Linear(8, 10)
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.blocks[0](x)
        for block in self.blocks[1:]:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits * first.detach().mean() if self.again else logits


def reading_learner(*, again: bool, recompute: Recompute) -> LocalLearner:
    cuts = [f"blocks.{j}" for j in range(3)]
    model = ReadsAgain(again=again)
    return LocalLearner(
        model, modules=cuts, example=torch.randn(2, 8), num_classes=10, recompute=recompute
    )


@pytest.mark.parametrize("recompute", ["never", "blocks", "repeatedly"])
def test_a_feature_that_is_read_again_keeps_its_content(recompute: Recompute) -> None:
    learner, x = reading_learner(again=True, recompute=recompute), torch.randn(6, 8)
    assert [module.read_later for module in learner.partition] == [True, False, False, False]
    assert torch.equal(learner.backward(x, torch.arange(6)).logits, learner(x))


def test_a_feature_that_is_read_again_unlike_on_the_example_is_refused() -> None:
    learner = reading_learner(again=False, recompute="repeatedly")
    learner.backward(torch.randn(6, 8), torch.arange(6))
    learner.model.again = True
    with pytest.raises(UserError, match="reads a module's output again"):
        learner.backward(torch.randn(6, 8), torch.arange(6))


def test_features_are_free_once_the_next_module_is_done() -> None:
    learner, x = reading_learner(again=False, recompute="never"), torch.randn(6, 8)
    handed_on: list[Tensor] = []
    for block in learner.model.blocks[1:]:
        block.register_forward_pre_hook(lambda _, given: handed_on.append(given[0]))
    learner.backward(x, torch.arange(6))
    assert [tensor.shape for tensor in handed_on] == [x.shape] * 3
    assert [tensor.untyped_storage().nbytes() for tensor in handed_on] == [4] * 3


def test_by_blocks_what_is_passed_on_inside_a_module_is_free_once_it_is_done() -> None:
    """The model's frames hold it longer; it is taken from there."""
    model, x = ReadsAgain(again=False), torch.randn(6, 8)
    learner = LocalLearner(
        model, modules=["blocks.1"], example=x[:2], num_classes=10, recompute="blocks"
    )
    handed_on: list[Tensor] = []
    for block in model.blocks[1:]:
        block.register_forward_pre_hook(lambda _, given: handed_on.append(given[0]))
    learner.backward(x, torch.arange(6))
    assert [tensor.untyped_storage().nbytes() for tensor in handed_on] == [4] * 3


@pytest.mark.parametrize("recompute", ["never", "blocks", "once", "repeatedly"])
def test_a_step_leaves_nothing_to_the_garbage_collector(recompute: Recompute) -> None:
    images, targets = torch.randn(IMAGES), torch.arange(6)
    settings = {
        "recompute": recompute,
        "patch_mode": "together",
    }  # PyTorch's checkpoint leaves some
    learner = LocalLearner(resnet(), modules=4, example=images[:2], num_classes=10, **settings)
    learner.backward(images, targets)
    gc.collect()
    gc.disable()
    try:
        learner.backward(images, targets)
        assert gc.collect() < 20
    finally:
        gc.enable()


def test_it_says_what_it_does_not_go_with() -> None:
    with pytest.raises(
        UserError, match="recompute: is 'yes', expected never or blocks or once or repeatedly"
    ):
        LocalLearner(
            resnet(), modules=4, example=torch.zeros(IMAGES), num_classes=10, recompute="yes"
        )
    learner = LocalLearner(
        resnet(), modules=4, example=torch.zeros(IMAGES), num_classes=10, recompute="repeatedly"
    )
    learner.model.layer1[0].compile(backend="eager")
    with pytest.raises(UserError, match="compiled blocks cannot be recomputed"):
        learner.backward(torch.zeros(IMAGES), torch.arange(6))


@pytest.mark.parametrize("recompute", ["once", "blocks", "repeatedly"])
def test_noise_that_autograd_saves_before_it_is_drawn_is_refused(recompute: Recompute) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.RReLU(), nn.Linear(8, 8), nn.RReLU(), nn.Linear(8, 3))
    learner = LocalLearner(
        model, modules=2, example=torch.zeros(2, 8), num_classes=3, recompute=recompute
    )
    with pytest.raises(UserError, match="RReLU cannot be recomputed"):
        learner.backward(torch.randn(4, 8), torch.arange(4) % 3)
