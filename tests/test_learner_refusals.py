"""What a learner refuses, and in which words."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from naive.rule import random_chain
from small_learners import IMAGES, TARGETS, hooks, random_learner, small
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from hpff import LocalLearner, models
from hpff.errors import UserError
from hpff.parallel import DataParallel


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
        (
            {"patch_mode": "one-by-one", "patch_norm": "together"},
            "patch_norm: is together with patch_mode one-by-one, expected patch_mode together",
        ),
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
        with pytest.raises(UserError, match=f"wrapped by {name}.*parallel.DataParallel") as caught:
            LocalLearner(wrong, modules=2, example=IMAGES[:2], num_classes=10)
        assert "\n" not in str(caught.value)

    learner = LocalLearner(model, modules=2, example=IMAGES[:2], num_classes=10)
    parallel = DataParallel(learner)
    learner.backward(IMAGES, TARGETS, on_module_done=parallel.module_done)
    parallel.finish()
    model.to(memory_format=torch.contiguous_format)
    fully_shard(model.layer1[0], mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(UserError, match=r"'layer1\.0' is wrapped by FSDPModule"):
        learner.backward(IMAGES, TARGETS)


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


def test_a_model_changed_after_wrapping_is_named() -> None:
    learner = random_learner()
    learner.model[3][2] = nn.Identity()
    with pytest.raises(UserError, match=r"no parameter '3\.2\.bias' any more"):
        learner.backward(IMAGES.double(), TARGETS % 4)


def test_a_batch_of_one_is_refused() -> None:
    learner = random_learner()
    with pytest.raises(UserError, match="the batch is 1"):
        learner.backward(IMAGES[:1].double(), TARGETS[:1])
    assert hooks(learner.model) == 0


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
