"""PredSim against NumPy and the numbers of the public codes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import log_loss

from hpff import LocalLearner, check_gradients, methods, models
from hpff.errors import UserError
from hpff.methods import AuxiliaryContext, PredSim
from hpff.methods.predsim import PredSimNetwork, similarity_features, similarity_matrix

CONTEXT = AuxiliaryContext(1, 4, "independent", (5, 6, 6), (3, 6, 6), (), 3, 1, F.cross_entropy)
TARGETS = torch.tensor([0, 2, 1, 0, 2, 2])


def test_similarity_matrix_is_the_correlation_of_samples() -> None:
    features = torch.randn(6, 9, dtype=torch.float64)
    expected = torch.from_numpy(np.corrcoef(features.cpu().numpy())).to(features.device)
    torch.testing.assert_close(similarity_matrix(features), expected, rtol=1e-6, atol=1e-6)


def test_labels_are_1_within_a_class_and_negative_between() -> None:
    wanted = similarity_matrix(F.one_hot(TARGETS, 3).double())
    same = TARGETS[:, None] == TARGETS[None, :]
    expected = torch.where(same, 1.0, -1 / (3 - 1)).double()
    torch.testing.assert_close(wanted, expected, rtol=1e-6, atol=1e-6)


def test_similarity_features_are_deviations_of_channels() -> None:
    maps = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    expected = torch.from_numpy(maps.cpu().numpy().reshape(2, 5, 12).std(2, ddof=1)).to(maps.device)
    torch.testing.assert_close(similarity_features(maps), expected)
    assert similarity_features(torch.randn(2, 3, 4, 4)).shape == (2, 48)
    assert similarity_features(torch.randn(2, 5, 1, 4)).shape == (2, 20)


def test_loss_is_the_weighted_sum_of_both() -> None:
    logits, features = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 7).double()
    outputs = {"logits": logits, "similarity": features}
    prediction = log_loss(TARGETS.cpu(), logits.softmax(1).cpu().numpy(), labels=[0, 1, 2])
    labels = np.where(TARGETS.cpu().numpy()[:, None] == TARGETS.cpu().numpy()[None, :], 1.0, -0.5)
    similarity = np.mean((np.corrcoef(features.cpu().numpy()) - labels) ** 2)
    found = PredSim(beta=0.7).loss(outputs, TARGETS, CONTEXT)
    assert found.item() == pytest.approx(0.3 * prediction + 0.7 * similarity, rel=1e-6)


@pytest.mark.parametrize(
    ("shape", "kernel"), [((16, 32, 32), (8, 4)), ((32, 16, 16), (4, 4)), ((64, 8, 8), (4, 2))]
)
def test_pooling_is_that_of_the_public_code(shape: tuple[int, ...], kernel: tuple[int]) -> None:
    network = PredSimNetwork(shape, 10, 512)
    assert network.pool.kernel_size == kernel
    assert network.classifier.in_features == 512
    assert not network.classifier.weight.any()


@pytest.mark.parametrize("shape", list(itertools.product((1, 7, 64), (1, 5, 7), (1, 6))))
@pytest.mark.parametrize("most", [1, 16, 512])
def test_any_shape_is_pooled_small_enough(shape: tuple[int, int, int], most: int) -> None:
    network = PredSimNetwork(shape, 4, most)
    out = network(torch.randn(3, *shape))
    assert out["logits"].shape == (3, 4)
    assert network.classifier.in_features <= max(most, shape[0])


def test_gradcheck() -> None:
    network = PredSim().auxiliary(CONTEXT).double()
    torch.nn.init.normal_(network.classifier.weight)

    def loss(maps: torch.Tensor) -> torch.Tensor:
        return PredSim().loss(network(maps), TARGETS, CONTEXT)

    maps = torch.randn(6, 5, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, maps)


@pytest.mark.parametrize(("k", "independent"), [(1, True), (2, True), (3, False), (5, True)])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_exact_at_both_levels_with_patches(k: int, independent: bool, n: int) -> None:
    images, targets = torch.rand(6, 3, 16, 16, dtype=torch.float64), TARGETS
    learner = LocalLearner(
        models.create("resnet20", 3, width=4).double(),
        modules=5,
        example=images[:2],
        num_classes=3,
        method="predsim",
        cascade=k,
        independent=independent,
        patches=n,
    )
    assert check_gradients(learner, images, targets) == {}


@pytest.mark.parametrize(
    "settings", [{"beta": 2}, {"beta": "much"}, {"feature_size": 0}, {"feature_size": 1.5}]
)
def test_wrong_settings_are_named(settings: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        methods.create("predsim", **settings)
