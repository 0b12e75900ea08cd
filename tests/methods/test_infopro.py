"""InfoPro against NumPy, scikit-learn and the numbers of the public code."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import log_loss
from torch import nn

from hpff import LocalLearner, check_gradients, methods, models
from hpff.auxiliary import Decoder, DeepDecoder, PatchFusion, deep_head, task_head
from hpff.errors import UserError
from hpff.methods import AuxiliaryContext, InfoPro
from hpff.methods.infopro import InfoProNetwork, supervised_contrast

TARGETS = torch.tensor([0, 2, 1, 0, 2, 2])


def context(module: int = 1, modules: int = 16) -> AuxiliaryContext:
    return AuxiliaryContext(
        module, modules, "independent", (4, 8, 8), (3, 16, 16), (), 3, 1, F.cross_entropy
    )


@pytest.mark.parametrize(
    ("channels", "kind", "parameters"),
    [
        (16, "1c2f", 10_186),
        (32, "1c2f", 28_170),
        (64, "1c2f", 46_602),
        (16, "2c2f", 19_466),
        (32, "2c2f", 65_162),
        (64, "2c2f", 83_594),
    ],
)
def test_heads_have_the_published_size(channels: int, kind: str, parameters: int) -> None:
    head = task_head(channels, kind, 128, 10)
    assert sum(p.numel() for p in head.parameters()) == parameters


@pytest.mark.parametrize("kind", ["0c1f", "0c2f", "1c1f", "1c2f", "1c3f", "2c1f", "2c2f"])
@pytest.mark.parametrize("channels", [3, 16, 48, 100])
def test_heads_of_every_size_and_width(kind: str, channels: int) -> None:
    head = task_head(channels, kind, 128, 10)
    assert head(torch.randn(2, channels, 8, 8)).shape == (2, 10)
    assert sum(isinstance(layer, nn.Conv2d) for layer in head) == int(kind[0])
    assert sum(isinstance(layer, nn.Linear) for layer in head) == int(kind[2])


def test_widening_is_a_factor_of_every_hidden_width() -> None:
    """As in the public code: 16 to 64 channels, 64 to 256 features, and 24 in the decoder."""
    network = InfoPro(head="2c3f", widen=2).auxiliary(replace(context(), features=(16, 8, 8)))
    shapes = [tuple(p.shape[:2]) for p in network.parameters() if p.ndim > 1]
    head = [(64, 16), (64, 64), (256, 64), (256, 256), (3, 256)]
    assert shapes == [*head, (24, 16), (3, 24)]


def test_heads_and_decoders_of_imagenet() -> None:
    """Written out from the public code for ResNet-101 with K = 2: 512 channels at 28×28."""
    head = deep_head(512, 1000)
    widths = [(m.in_channels, m.out_channels) for m in head if isinstance(m, nn.Conv2d)]
    assert widths == [(512, 128), (128, 256), (256, 512), (512, 2048)]
    assert head(torch.randn(2, 512, 14, 14)).shape == (2, 1000)

    decoder = DeepDecoder(8, 3).double()
    maps = torch.randn(2, 8, 7, 7, dtype=torch.float64)
    first, *others = (layer for layer in decoder.modules() if isinstance(layer, nn.Conv2d))
    expected = F.conv2d(maps, first.weight, first.bias)
    for side, norm, layer in zip((14, 28, 56), decoder.norms, others, strict=True):
        expected = F.batch_norm(expected, None, None, norm.weight, norm.bias, training=True).relu()
        expected = F.interpolate(expected, size=side, mode="bilinear", align_corners=True)
        expected = F.conv2d(expected, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(decoder(maps, (56, 56)), expected)


def test_contrast_equals_the_written_out_sum() -> None:
    vectors = torch.randn(6, 5, dtype=torch.float64)
    unit = vectors.cpu().numpy() / np.linalg.norm(vectors.cpu().numpy(), axis=1, keepdims=True)
    labels, total = TARGETS.tolist(), 0.0
    for i in range(6):
        others = [a for a in range(6) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        below = sum(math.exp(unit[i] @ unit[a] / 0.07) for a in others)
        if positives:
            shares = [math.log(math.exp(unit[i] @ unit[p] / 0.07) / below) for p in positives]
            total -= sum(shares) / len(positives)
    assert supervised_contrast(vectors, TARGETS, 0.07).item() == pytest.approx(total / 6)


def test_contrast_without_positives_is_zero_and_has_a_gradient() -> None:
    vectors = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    loss = supervised_contrast(vectors, torch.tensor([0, 1, 2]), 0.07)
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(vectors.grad).all()


def plain_decoder(decoder: Decoder, maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Logits of the decoder as the paper has it: enlarge, then convolve twice."""
    large = F.interpolate(maps, size=size, mode="bilinear", align_corners=True)
    wide = F.conv2d(large, decoder.enlarge.weight, decoder.enlarge.bias, padding=1)
    normal = F.batch_norm(wide, None, None, decoder.norm.weight, decoder.norm.bias, training=True)
    return F.conv2d(normal.relu(), decoder.last.weight, decoder.last.bias, padding=1)


def test_reconstruction_is_the_cross_entropy_of_denormalized_pixels() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    decoder = Decoder(4, 3)
    network = InfoProNetwork(task_head(4, "0c1f", 8, 3), [decoder], mean, std).double()
    features = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    pixels = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    shift, scale = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (mean, std))
    found = network(features, (pixels - shift) / scale)["reconstruction"]

    decoded = torch.sigmoid(plain_decoder(decoder, features, (16, 16))).detach().cpu().numpy()
    target = pixels.cpu().numpy()
    expected = -(target * np.log(decoded) + (1 - target) * np.log(1 - decoded))
    np.testing.assert_allclose(found.detach().cpu(), expected.reshape(2, -1).mean(1), rtol=1e-6)


@pytest.mark.parametrize(("module", "share"), [(1, 0.0), (8, 0.5), (15, 1.0)])
def test_weights_run_linearly_from_the_first_module_to_the_last(module: int, share: float) -> None:
    method = InfoPro(reconstruction=(5, 1), classification=(0.5, 2))
    logits = torch.randn(6, 3, dtype=torch.float64)
    outputs = {"task": logits, "reconstruction": torch.full((6,), 0.7)}
    task = log_loss(TARGETS.cpu(), logits.softmax(1).cpu().numpy(), labels=[0, 1, 2])
    expected = (5 - 4 * share) * 0.7 + (0.5 + 1.5 * share) * task
    found = method.loss(outputs, TARGETS, context(module, modules=16))
    # Module 8 of 15 sits half way between the first and the last auxiliary network.
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_two_modules_use_the_first_weights() -> None:
    outputs = {"task": torch.zeros(6, 3), "reconstruction": torch.ones(6)}
    found = InfoPro(reconstruction=(3, 9), classification=(2, 9)).loss(
        outputs, TARGETS, context(1, modules=2)
    )
    assert found.item() == pytest.approx(3 + 2 * math.log(3), rel=1e-5)


@pytest.mark.parametrize("together", [True, False])
def test_each_patch_reconstructs_its_own_patch_of_the_image(together: bool) -> None:
    class Means(nn.Module):
        def forward(self, maps: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
            return maps.mean((1, 2, 3)) * images.mean((1, 2, 3))

    maps, images = torch.rand(5, 2, 4, 4), torch.rand(5, 3, 8, 8)
    corners = [(0, 0), (0, 1), (1, 0), (1, 1)]
    expected = sum(
        maps[:, :, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean((1, 2, 3))
        * images[:, :, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4].mean((1, 2, 3))
        for r, c in corners
    )
    fused = PatchFusion(Means(), 2, together=together)(maps, images)
    torch.testing.assert_close(fused, expected / 4)


def test_separate_decoders_are_those_of_hpffs_code() -> None:
    """Each has its own quarter; the errors are summed; the task's head sees the whole map."""
    method = InfoPro(decoders=2, head="0c1f", reconstruction=(3, 0), classification=(2, 0))
    network = method.auxiliary(context()).double()
    maps, images = torch.randn(6, 4, 8, 8).double(), torch.rand(6, 3, 16, 16).double()
    total = torch.zeros((), dtype=torch.float64)
    for (r, c), decoder in zip([(0, 0), (0, 1), (1, 0), (1, 1)], network.decoders, strict=True):
        logits = plain_decoder(decoder, maps[:, :, 4 * r :, 4 * c :][:, :, :4, :4], (8, 8))
        target = images[:, :, 8 * r :, 8 * c :][:, :, :8, :8]
        total += F.binary_cross_entropy(logits.sigmoid(), target)
    scores = network.head[-1](maps.mean((2, 3)))
    expected = 3 * total + 2 * F.cross_entropy(scores, TARGETS)
    torch.testing.assert_close(method.loss(network(maps, images), TARGETS, context()), expected)
    assert len({id(p) for p in network.decoders.parameters()}) == 4 * 6


def test_separate_decoders_are_exact_and_fit_every_map() -> None:
    images = torch.rand(6, 3, 24, 24, dtype=torch.float64)
    learner = LocalLearner(
        models.create("resnet20", 3, width=4).double(),
        modules=5,
        example=images[:2],
        num_classes=3,
        method=InfoPro(decoders=4, head="0c1f"),
        patches=1,
    )
    assert check_gradients(learner, images, TARGETS) == {}
    counts = [len(net.network.decoders) for net in learner.cascade_auxiliary.values()]
    assert counts == [16, 16, 9], "maps of 24, 12 and 6"
    with pytest.raises(UserError, match="maps of 10×10 cannot be cut for 4×4 decoders"):
        learner.backward(images[:, :, :20, :20], TARGETS)


def test_separate_decoders_and_pff_exclude_each_other() -> None:
    images = torch.rand(2, 3, 16, 16)
    with pytest.raises(UserError, match="decoders is 2 with PFF's patches 2; expected patches 1"):
        LocalLearner(
            models.create("resnet20", 3, width=4),
            modules=5,
            example=images,
            num_classes=3,
            method=InfoPro(decoders=2),
        )


@pytest.mark.parametrize("task", ["softmax", "contrast"])
def test_gradcheck(task: str) -> None:
    method = InfoPro(task=task, head="1c2f", hidden=6)
    network = method.auxiliary(context()).double()
    images = torch.rand(6, 3, 16, 16, dtype=torch.float64)

    def loss(maps: torch.Tensor) -> torch.Tensor:
        return method.loss(network(maps, images), TARGETS, context())

    maps = torch.randn(6, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, maps, fast_mode=True, nondet_tol=1e-9)


@pytest.mark.parametrize("head", ["0c1f", "1c1f", "2c2f", "imagenet"])
def test_exact_with_every_head(head: str) -> None:
    images = torch.rand(6, 3, 16, 16, dtype=torch.float64)
    learner = LocalLearner(
        models.create("resnet20", 3, width=4).double(),
        modules=4,
        example=images[:2],
        num_classes=3,
        method=InfoPro(head=head, hidden=16, widen=0.25),
    )
    assert check_gradients(learner, images, TARGETS) == {}


@pytest.mark.parametrize(
    ("k", "independent", "n", "task"),
    [
        *((k, k != 3, n, "softmax") for k in (1, 2, 3, 5) for n in (1, 2)),
        (2, True, 4, "softmax"),
        *((2, True, n, "contrast") for n in (1, 2, 4)),
        (3, False, 2, "contrast"),
    ],
)
def test_exact_at_both_levels_with_patches(k: int, independent: bool, n: int, task: str) -> None:
    images = torch.rand(6, 3, 16, 16, dtype=torch.float64)
    learner = LocalLearner(
        models.create("resnet20", 3, width=4).double(),
        modules=5,
        example=images[:2],
        num_classes=3,
        method=InfoPro(task=task, hidden=16),
        cascade=k,
        independent=independent,
        patches=n,
    )
    assert check_gradients(learner, images, TARGETS) == {}


def test_works_under_autocast() -> None:
    images = torch.rand(6, 3, 16, 16)
    learner = LocalLearner(
        models.create("resnet20", 3, width=4),
        modules=5,
        example=images[:2],
        num_classes=3,
        method="infopro",
    )
    with torch.autocast("cpu", torch.bfloat16):
        losses = learner.backward(images, TARGETS)
    assert torch.isfinite(losses.total)
    assert {p.grad.dtype for p in learner.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "settings",
    [
        {"task": "guess"},
        {"head": "3c2f"},
        {"reconstruction": 5},
        {"classification": (1, 2, 3)},
        {"decoders": 0},
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        methods.create("infopro", **settings)


def test_needs_images() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(UserError, match="needs images"):
        LocalLearner(
            model,
            modules=2,
            example=torch.randn(2, 4),
            num_classes=2,
            method="infopro",
            cascade=1,
        )


@pytest.mark.parametrize(
    ("network", "data", "modules", "reconstruction", "classification"),
    [
        ("resnet32", "cifar10", 16, [5, 0.2], [0.05, 0.5]),
        ("resnet32", "parquet:../data/cifar10", 4, [6, 1], [0, 2]),
        ("resnet110", "cifar10", 55, [5, 0.5], [0, 1]),
        ("resnet110", "stl10", 8, [20, 5], [0.2, 1]),
        ("resnet110", "svhn", 3, [1, 1], [0.1, 0.1]),
        ("torchvision/resnet152", "imagenet", 2, [5, 5], [1, 1]),
    ],
)
def test_published_weights(
    network: str, data: str, modules: int, reconstruction: list[float], classification: list[float]
) -> None:
    found = methods.published("infopro", network=network, data=data, modules=modules)
    weights = {"reconstruction": reconstruction, "classification": classification}
    assert found == ({"head": "imagenet", **weights} if data == "imagenet" else weights)
    method = methods.create("infopro", **found)
    assert isinstance(method, InfoPro)
    assert method.classification == tuple(classification)


def test_nothing_is_published_for_other_networks_and_data() -> None:
    for network, data in (("resnet20", "cifar10"), ("resnet32", "svhn"), ("resnet32", "digits")):
        assert methods.published("infopro", network=network, data=data, modules=4) == {}


@pytest.mark.parametrize(("pool", "factor"), [(2, 2), (4, 3)])
def test_light_decoders_give_images_as_small_as_the_maps_are_pooled(pool: int, factor: int) -> None:
    images = torch.randn(4, 3, 12, 12, dtype=torch.float64)
    learner = LocalLearner(
        models.create("resnet20", width=4).double(),
        modules=3,
        example=images[:2],
        num_classes=10,
        method="infopro",
        cascade=2,
        patches=2,
        auxiliary_pool=pool,
    )
    assert not check_gradients(learner, images, torch.arange(4))
    network = next(learner.auxiliary_networks.at_module(1)).network
    seen: list[torch.Tensor] = []
    network.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    learner.backward(images, torch.arange(4))
    corner = F.avg_pool2d(images, factor)[0, :, : 6 // factor, : 6 // factor]
    assert seen[0].shape[1:] == corner.shape
    torch.testing.assert_close(seen[0][0], corner)
    contexts = learner.auxiliary_networks.contexts.values()
    assert {each.image for each in contexts} == {tuple(corner.shape)}


def test_behind_a_narrowing_map_decoders_are_narrow_too() -> None:
    narrow = replace(context(), features=(16, 8, 8), width=16)
    for given, widths in ((narrow, [4, 4, 4]), (replace(narrow, width=None), [128, 32, 12])):
        network = InfoPro(head="imagenet").auxiliary(given)
        assert [norm.num_features for norm in network.decoders[0].norms] == widths
