"""The learner beside what people do with models."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from naive.rule import flat_gradients, random_chain
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from hpff import LocalLearner, check_gradients, models
from hpff.errors import UserError
from hpff.memory import AllocationCounter
from hpff.methods import AuxiliaryContext, Method

IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 3, 4, 5])


def small(**kwargs: object) -> LocalLearner:
    model = models.create("resnet20", width=4)
    settings = {"modules": 4, "example": IMAGES[:2], "num_classes": 10} | kwargs
    return LocalLearner(model, **settings)


def hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


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


def random_learner(**kwargs: object) -> LocalLearner:
    model = random_chain(0, 4, norm=True, side=16)
    settings = {"modules": 4, "example": IMAGES[:2].double(), "num_classes": 4} | kwargs
    return LocalLearner(model, **settings)


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modules": 99}, "modules=99: this model can be cut into 1 to 10 modules"),
        ({"modules": 0}, "modules: is 0, expected a whole number of at least 1"),
        ({"modules": 2.5}, "modules: is 2.5, expected a whole number of at least 1 or a list"),
        ({"modules": ["layer9"]}, "no submodule 'layer9', did you mean layer"),
        ({"cascade": 5}, "cascade: is 5, expected at most the number of modules (4)"),
        ({"cascade": 0}, "cascade: is 0, expected a whole number of at least 1"),
        ({"patches": 0}, "patches: is 0, expected a whole number of at least 1"),
        ({"patches": 1.5}, "patches: is 1.5, expected"),
        ({"independent": False, "cascade": 1}, "so nothing would train"),
        ({"method": "dlg"}, "unknown method 'dlg', did you mean dgl?"),
        ({"patch_mode": "some"}, "patch_mode: is 'some', expected auto or together or one-by-one"),
        ({"cascade_weight": -1}, "cascade_weight: is -1, expected a number above 0"),
        ({"num_classes": 0}, "num_classes is 0, expected"),
        ({"num_classes": 11}, "num_classes is 11, but the model's output has 10"),
        ({"num_classes": 3}, "num_classes is 3, but the model's output has 10"),
        ({"criterion": "ce"}, "criterion is 'ce', expected a function of logits and targets"),
        ({"criterion": None}, "criterion is null, expected a function"),
        ({"example": IMAGES[:0]}, "the example (0×3×16×16) holds no samples"),
        ({"example": (IMAGES[:0],)}, "the example (0×3×16×16) holds no samples"),
    ],
)
def test_wrong_arguments_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=r".") as caught:
        small(**settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_models_that_cannot_be_cut_are_refused() -> None:
    model = models.create("resnet20", width=2)
    frozen = copy.deepcopy(model).requires_grad_(False)
    cases = [
        ("not a model", "expected a torch.nn.Module"),
        (torch.compile(model, backend="eager"), "compile"),
        (LocalLearner(model, modules=2, example=IMAGES[:2], num_classes=10), "already"),
        (nn.Flatten(), "no parameters"),
        (frozen, "every parameter of the model is frozen"),
        (nn.DataParallel(model), "the model is wrapped by DataParallel.*the plain model"),
        (nn.Sequential(nn.DataParallel(model)), "submodule '0' is wrapped by DataParallel"),
    ]
    for wrong, message in cases:
        with pytest.raises(UserError, match=message):
            LocalLearner(wrong, modules=2, example=IMAGES[:2], num_classes=10)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_models_of_several_devices_are_refused_with_what_works() -> None:
    model = models.create("resnet20", width=2)
    sharded = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    wrapped = {
        "DistributedDataParallel": DistributedDataParallel(copy.deepcopy(model)),
        "FSDPModule": sharded,
    }
    for name, wrong in wrapped.items():
        with pytest.raises(UserError, match=f"wrapped by {name}.*all_reduce") as caught:
            LocalLearner(wrong, modules=2, example=IMAGES[:2], num_classes=10)
        assert "\n" not in str(caught.value)

    learner = LocalLearner(model, modules=2, example=IMAGES[:2], num_classes=10)

    def reduce(j: int) -> None:
        for parameter in learner.module_parameters[j - 1]:
            distributed.all_reduce(parameter.grad.div_(1))

    learner.backward(IMAGES, TARGETS, on_module_done=reduce)


def test_inputs_that_wait_for_a_gradient_are_refused() -> None:
    learner = small()
    images = IMAGES.clone().requires_grad_()
    for inputs in (images, (images,), 2 * images):
        with pytest.raises(UserError, match="the inputs require gradients"):
            learner.backward(inputs, TARGETS)
    assert all(parameter.grad is None for parameter in learner.parameters())


def test_a_forward_that_changes_its_way_is_noticed() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = random_chain(0, 4, norm=True, side=16).float()
            self.skip = False

        def forward(self, x: Tensor) -> Tensor:
            for index, block in enumerate(self.blocks):
                if not (self.skip and index == 1):
                    x = block(x)
            return x

    model = Skips()
    model.blocks[1] = nn.Sequential(nn.Conv2d(model.blocks[0].conv.out_channels, 4, 1))
    model.blocks[0] = nn.Sequential(nn.Conv2d(3, 4, 1))
    model.blocks[1] = nn.Sequential(nn.Conv2d(4, 4, 1))
    model.blocks[2] = nn.Sequential(nn.Conv2d(4, 4, 1))
    model.blocks[3] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    learner = LocalLearner(
        model, modules=["blocks.0", "blocks.1"], example=IMAGES[:2], num_classes=4
    )
    learner.model.skip = True
    with pytest.raises(UserError, match=r"'blocks\.1' did not run"):
        learner.backward(IMAGES, TARGETS % 4)
    assert hooks(model) == 0


def test_a_cut_that_runs_again_after_the_last_is_noticed() -> None:
    class Loops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.times = 1

        def forward(self, x: Tensor) -> Tensor:
            x = self.blocks[0](x)
            for _ in range(self.times):
                x = torch.tanh(self.blocks[1](x))
            return self.blocks[2](x)

    model, x = Loops(), torch.randn(4, 4)
    learner = LocalLearner(model, modules=["blocks.0", "blocks.1"], example=x, num_classes=4)
    model.times = 2
    with pytest.raises(UserError, match=r"'blocks\.1' ran where 'the head' was due"):
        learner.backward(x, TARGETS[:4])


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


def test_a_model_changed_after_wrapping_is_named() -> None:
    learner = random_learner()
    learner.model[3][2] = nn.Identity()
    with pytest.raises(UserError, match=r"no parameter '3\.2\.bias' any more"):
        learner.backward(IMAGES.double(), TARGETS % 4)


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


def test_a_batch_of_one_is_refused() -> None:
    learner = random_learner()
    with pytest.raises(UserError, match="the batch is 1"):
        learner.backward(IMAGES[:1].double(), TARGETS[:1])
    assert hooks(learner.model) == 0


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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch 2.11's
def test_a_model_that_recomputes_its_blocks_is_refused() -> None:
    class Recomputes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = random_chain(0, 4, norm=False, side=16)

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False)
            return x

    with pytest.raises(UserError, match=r"checkpoint"):
        LocalLearner(
            Recomputes(), modules=["blocks.0", "blocks.1"], example=IMAGES.double(), num_classes=4
        ).backward(IMAGES.double(), TARGETS % 4)


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
