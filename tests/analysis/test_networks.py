"""Features of every module: the model's own outputs, whatever the model, which stays as it is."""

from __future__ import annotations

import pytest
import torch
from small_learners import IMAGES, TARGETS, hooks, small
from torch import Tensor, nn

from hpff import models
from hpff.analysis import Network, activation_maps, class_activation_maps
from hpff.errors import UserError


def test_features_are_the_outputs_at_the_cuts_and_of_the_last_block() -> None:
    learner = small()
    model = learner.model.train()
    network = Network.of(learner)
    assert [place.name for place in network.places][-1] == "layer3.2"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = network.features(IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert hooks(model) == 0
    x = model.eval().conv1(IMAGES)
    seen: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _m, _a, out, name=name: seen.update({name: out}))
    model(IMAGES)
    assert x.shape[0] == len(IMAGES)
    for place, features in zip(network.places, found, strict=True):
        assert torch.equal(features, seen[place.name])


@pytest.mark.parametrize(
    ("name", "settings", "dimensions"),
    [
        ("timm/vit_tiny_patch16_224", {"img_size": 32, "depth": 3}, 4),
        ("resnet20", {"width": 4}, 4),
    ],
)
def test_any_model_by_name(name: str, settings: dict[str, int], dimensions: int) -> None:
    model = models.create(name, 10, **settings)
    images = torch.randn(2, 3, 32, 32)
    network = Network.of(model, modules=3, example=images)
    features = network.features(images)
    assert len(network) == len(features) == 3
    assert features[-1].ndim == dimensions
    assert features[0].ndim == 4
    for maps, other in zip(
        activation_maps(network, images), class_activation_maps(network, images), strict=True
    ):
        assert (maps is None) == (other is None)


def test_a_learner_of_backprop_is_cut_as_its_settings_say() -> None:
    network = Network.of(small(method="bp"))
    assert len(network) == 4
    assert len(Network.of(small(), modules=3)) == 3


def test_a_model_needs_an_example() -> None:
    with pytest.raises(UserError, match="give one small input"):
        Network.of(models.create("resnet20", width=4))


def test_samples_are_counted_over_batches() -> None:
    network = Network.of(small())
    loader = [(IMAGES, TARGETS)] * 3
    sizes = [len(targets) for _, targets in network.over(loader, samples=8)]
    assert sizes == [6, 2]
    assert [len(targets) for _, targets in network.over(loader)] == [6, 6, 6]


class Overwriting(nn.Module):
    """Each block's output is changed in place by what follows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)))


def test_outputs_that_are_overwritten_are_read_before() -> None:
    model = Overwriting()
    network = Network.of(model, modules=["first"], example=IMAGES[:2])
    features = network.features(IMAGES)
    assert torch.equal(features[0], model.first(IMAGES).detach())
    assert (features[0] < 0).any()
    assert class_activation_maps(network, IMAGES)[0] is not None


def test_grad_cam_is_that_of_its_paper() -> None:
    """By autograd alone, on the last convolution of a small network."""
    model = Overwriting().eval()
    network = Network.of(model, modules=["first"], example=IMAGES[:2])
    classes = torch.tensor([0, 1, 2, 3, 4, 0])
    found = class_activation_maps(network, IMAGES, classes)[0]
    assert found is not None
    maps = model.first(IMAGES).detach().requires_grad_()
    score = model.head(model.second(maps.clone()))[range(6), classes].sum()
    (slope,) = torch.autograd.grad(score, maps)
    cam = torch.relu((slope.mean((2, 3), keepdim=True) * maps).sum(1)).detach()
    low = cam.amin((1, 2), keepdim=True)
    expected = (cam - low) / (cam.amax((1, 2), keepdim=True) - low).clamp(min=1e-30)
    assert torch.allclose(found, expected, atol=1e-5)
    assert 0 <= float(found.min()) <= float(found.max()) <= 1


def test_activation_maps_are_mean_sizes() -> None:
    model = Overwriting().eval()
    network = Network.of(model, modules=["first"], example=IMAGES[:2])
    found = activation_maps(network, IMAGES)[0]
    assert found is not None
    sizes = model.first(IMAGES).abs().mean(1)
    for image in range(6):
        order = sizes[image].flatten().argsort()
        assert torch.equal(found[image].flatten().argsort(), order)
    assert torch.allclose(found.amax((1, 2)), torch.ones(6))


def test_the_gradients_of_parameters_are_left_alone() -> None:
    model = Overwriting()
    network = Network.of(model, modules=["first"], example=IMAGES[:2])
    class_activation_maps(network, IMAGES)
    assert all(p.grad is None for p in model.parameters())
    assert model.training
