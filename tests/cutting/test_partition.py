"""Where models are cut."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpff import LocalLearner, check_gradients, models
from hpff.cutting.partition import partition
from hpff.errors import UserError

EXAMPLE = torch.randn(2, 3, 32, 32)


def cuts(model: nn.Module, modules: object, example: object = EXAMPLE) -> list[str]:
    return [module.cut for module in partition(model, modules, example)[:-1]]


# Written out by hand from the published splits: the last block of each module but the last.
PUBLISHED = {
    ("resnet32", 2): "2.1",
    ("resnet32", 3): "1.4 2.4",
    ("resnet32", 4): "1.2 2.1 3.0",
    ("resnet32", 8): "1.0 1.2 1.4 2.1 2.3 3.0 3.2",
    ("resnet110", 2): "2.8",
    ("resnet110", 3): "1.17 2.17",
    ("resnet110", 4): "1.11 2.7 3.3",
    ("resnet110", 8): "1.4 1.11 2.0 2.7 2.14 3.3 3.10",
    ("resnet110", 16): "1.1 1.4 1.7 1.10 1.13 1.16 2.1 2.4 2.7 2.11 2.15 3.1 3.5 3.9 3.13",
}


@pytest.mark.parametrize(("name", "count"), PUBLISHED)
def test_published_splits(name: str, count: int) -> None:
    expected = [f"layer{block}" for block in PUBLISHED[name, count].split()]
    assert cuts(models.create(name, width=2), count) == expected


def test_published_split_of_resnet110_in_32() -> None:
    found = cuts(models.create("resnet110", width=2), 32)
    assert len(found) == 31
    blocks = {"1", "2", "4", "5", "7", "9", "11", "13", "14", "16", "17"}
    assert {c.rpartition(".")[2] for c in found if c.startswith("layer1")} == blocks
    assert {c.rpartition(".")[2] for c in found if c.startswith("layer2")} == blocks
    last = {"1", "3", "4", "6", "7", "9", "11", "13", "15"}
    assert {c.rpartition(".")[2] for c in found if c.startswith("layer3")} == last


@pytest.mark.parametrize(("name", "blocks"), [("resnet32", 15), ("resnet110", 54)])
def test_the_stem_is_a_module_of_its_own_only_beside_all_blocks(name: str, blocks: int) -> None:
    model = models.create(name, width=2)
    with_stem = partition(model, blocks + 1, EXAMPLE)
    without = partition(model, blocks, EXAMPLE)
    assert (len(with_stem), len(without)) == (blocks + 1, blocks)
    assert with_stem[0].cut == "relu"
    assert with_stem[0].parameter_names == ("bn1.bias", "bn1.weight", "conv1.weight") or set(
        with_stem[0].parameter_names
    ) == {"bn1.bias", "bn1.weight", "conv1.weight"}
    assert without[0].cut == "layer1.0"
    assert [m.cut for m in with_stem[1:]] == [m.cut for m in without]
    with pytest.raises(UserError, match=f"1 to {blocks + 1} modules"):
        partition(model, blocks + 2, EXAMPLE)


def test_a_number_without_published_split_is_balanced() -> None:
    blocks = [
        sum(name.startswith("layer") for name in module.submodules)
        for module in partition(models.create("resnet32", width=2), 6, EXAMPLE)
    ]
    assert sum(blocks) == 15
    assert max(blocks) - min(blocks) <= 1


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_every_parameter_belongs_to_one_module(count: int) -> None:
    model = models.create("resnet20", width=2)
    names = [name for module in partition(model, count, EXAMPLE) for name in module.parameter_names]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_torchvision_resnet101_is_cut_as_published() -> None:
    model = models.create("torchvision/resnet101", num_classes=10)
    published = {4: "3.0 3.9 3.17", 8: "2.0 3.1 3.5 3.9 3.13 3.17 3.21"}
    for count, names in published.items():
        assert cuts(model, count) == [f"layer{block}" for block in names.split()]


def test_names_are_taken_in_any_order() -> None:
    model = models.create("resnet20", width=2)
    assert cuts(model, ["layer2.1", "layer1"]) == ["layer1", "layer2.1"]
    with pytest.raises(UserError, match="same cut twice"):
        cuts(model, ["layer1", "layer1.2"])


class Bypass(nn.Module):
    """A U-Net in small: the first features are used again at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, padding=1)
        self.middle = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh())
        self.up = nn.Conv2d(8, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down(x)
        x = self.up(torch.cat([self.middle(first), first], 1))
        return self.head(torch.tanh(x).mean((2, 3)))


def test_a_cut_that_leaks_is_refused_and_the_leak_named() -> None:
    with pytest.raises(UserError) as caught:
        partition(Bypass(), ["middle"], EXAMPLE)
    message = str(caught.value)
    assert "'down'" in message
    assert "cuts that work: down" in message
    assert cuts(Bypass(), ["down", "up"]) == ["down", "up"]


def test_a_submodule_that_only_hands_its_input_on_is_no_cut() -> None:
    with pytest.raises(UserError, match=r"layer1\.0\.shortcut"):
        cuts(models.create("resnet20", width=2), ["layer1.0.shortcut"])


def test_a_submodule_used_twice_is_no_cut() -> None:
    with pytest.raises(UserError, match="runs 2 times"):
        cuts(models.create("resnet20", width=2), ["layer1.0.relu"])


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_an_output_that_the_next_layer_overwrites(cut: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    ).double()
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    found = partition(model, [str(cut)], images)
    assert found[0].overwritten == (cut in (1, 3))
    learner = LocalLearner(model, modules=[str(cut), "4"], example=images, num_classes=5)
    assert check_gradients(learner, images, torch.randint(5, (4,))) == {}


def test_a_plain_sequential_is_cut_between_its_children() -> None:
    model = nn.Sequential(
        *(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)) for _ in range(3)),
        nn.Linear(4, 2),
    )
    example = torch.randn(2, 4)
    assert cuts(model, 4, example) == ["0", "1", "2"]
    with pytest.raises(UserError, match="1 to 4 modules"):
        cuts(model, 5, example)


def test_patches_shrink_where_they_do_not_fit_and_the_partition_shows_it() -> None:
    model = models.create("resnet20", width=2)
    images = torch.randn(2, 3, 36, 36)  # maps of 36, 18 and 9
    for wanted, in_force in ((2, [2, 2, 1]), (3, [3, 3, 3]), (4, [4, 3, 3]), (1, [1, 1, 1])):
        learner = LocalLearner(
            model,
            modules=["layer1.0", "layer2.0", "layer3.0"],
            example=images,
            num_classes=10,
            patches=wanted,
        )
        assert [module.patches for module in learner.partition] == [*in_force, 1]
        losses = learner.backward(images, torch.tensor([1, 2]))
        assert torch.isfinite(losses.total)
    shown = str(learner.partition).splitlines()
    assert len(shown) == 5
    assert "layer2.0" in shown[2]


def test_partition_tells_names_numbers_and_shapes() -> None:
    model = models.create("resnet20", width=4)
    found = partition(model, 3, EXAMPLE)
    assert sum(m.parameters for m in found) == sum(p.numel() for p in model.parameters())
    assert [m.output_shape for m in found] == [(4, 32, 32), (8, 16, 16), (10,)]
    assert found[1].submodules == ("layer2.0", "layer2.1", "layer2.2")


def test_a_model_that_returns_no_logits_is_refused() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.layer(x), x

    with pytest.raises(UserError, match="returns tuple; expected a tensor of logits"):
        partition(Pair(), 1, torch.randn(2, 3))


def test_functional_steps_between_submodules() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3)
            self.second = nn.Conv2d(4, 4, 3)
            self.third = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.first(x))
            x = F.relu(self.second(x), inplace=True)
            return self.third(x.mean((2, 3)))

    learner = LocalLearner(Net().double(), modules=2, example=EXAMPLE.double(), num_classes=5)
    assert [m.cut for m in learner.partition] == ["first", None]
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    assert check_gradients(learner, images, torch.randint(5, (4,))) == {}


def test_an_example_of_the_wrong_size_is_named() -> None:
    model = models.create("resnet20", width=2)
    with pytest.raises(UserError, match=r"does not run on the example \(2×1×8×8\)"):
        partition(model, 3, torch.randn(2, 1, 8, 8))
    with pytest.raises(UserError, match="no tensor"):
        partition(model, 3, ())


def test_nothing_of_the_example_outlives_the_cut() -> None:
    model = models.create("resnet20", width=4)
    weight = weakref.ref(model.get_parameter("fc.weight"))
    partition(model, 4, torch.randn(2, 3, 32, 32))
    del model
    gc.collect()
    assert weight() is None
