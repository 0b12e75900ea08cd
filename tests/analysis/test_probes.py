"""Probes: the same answers as scikit-learn's, streaming or at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.linear_model import RidgeClassifier as SklearnRidge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_learners import small
from torch import Tensor

from hpff.analysis import Network, RidgeClassifier, probes
from hpff.analysis.networks import pooled
from hpff.analysis.probes import HELD_OUT, RIDGES
from hpff.errors import UserError


def clouds(count: int, classes: int, width: int) -> tuple[Tensor, Tensor]:
    targets = torch.randint(classes, (count,))
    centers = torch.randn(classes, width)
    scale = torch.tensor([10.0**p for p in range(-2, width - 2)])
    return (centers[targets] + torch.randn(count, width)) * scale + 3, targets


@pytest.mark.parametrize("ridge", [1e-3, 0.3])
@pytest.mark.parametrize("batch", [17, 1000])
def test_answers_are_those_of_scikit_learn(ridge: float, batch: int) -> None:
    rows, targets = clouds(400, 4, 5)
    others, _ = clouds(200, 4, 5)
    classifier = RidgeClassifier(4, ridge)
    for start in range(0, 400, batch):
        classifier.update(rows[start : start + batch], targets[start : start + batch])
    classifier.fit()
    theirs = make_pipeline(StandardScaler(), SklearnRidge(alpha=ridge * 400))
    theirs.fit(rows.double().numpy(), targets.numpy())
    expected = theirs.predict(others.double().numpy())
    assert np.array_equal(classifier.answers(others).numpy(), expected)


def test_the_ridge_is_chosen_on_held_out_samples() -> None:
    """Its squared error there, from sums alone, is that of scikit-learn's predictions."""
    wide, targets = torch.randn(150, 120), torch.randint(3, (150,))
    wide[:, 0] += targets
    noisy, clear = RidgeClassifier(3), RidgeClassifier(3)
    noisy.update(wide, targets)
    noisy.fit()
    rows, classes = clouds(3000, 3, 4)
    clear.update(rows, classes)
    clear.fit()
    assert noisy.ridge is not None
    assert clear.ridge is not None
    assert noisy.ridge == 1.0
    assert clear.ridge < 0.1
    out = torch.rand(150, generator=torch.Generator().manual_seed(0)) < HELD_OUT
    errors = []
    for ridge in RIDGES:
        scaler = StandardScaler().fit(wide[~out].double().numpy())
        ours = Ridge(alpha=ridge * int((~out).sum()))
        hot = torch.nn.functional.one_hot(targets, 3).numpy()
        ours.fit(scaler.transform(wide[~out].double().numpy()), hot[~out.numpy()])
        guess = ours.predict(scaler.transform(wide[out].double().numpy()))
        errors.append(((guess - hot[out.numpy()]) ** 2).sum())
    assert RIDGES[int(np.argmin(errors))] == noisy.ridge
    kept, held_out = noisy._kept, noisy._held_out
    assert kept is not None
    assert held_out is not None
    found = [held_out.squared_error(*kept.solved(ridge)) for ridge in RIDGES]
    assert found == pytest.approx(errors)


def test_features_that_never_change_do_no_harm() -> None:
    rows, targets = clouds(300, 3, 4)
    with_constants = torch.cat([rows, torch.full((300, 2), 7.0)], 1)
    plain, other = RidgeClassifier(3), RidgeClassifier(3)
    plain.update(rows, targets)
    other.update(with_constants, targets)
    plain.fit()
    other.fit()
    assert torch.equal(plain.answers(rows), other.answers(with_constants))


def test_a_probe_of_each_module_finds_what_scikit_learn_finds() -> None:
    network = Network.of(small(), label="net")
    images, targets = torch.randn(60, 3, 16, 16), torch.randint(3, (60,))
    loader = [(images[i : i + 25], targets[i : i + 25]) for i in (0, 25, 50)]
    found = probes(network, loader, loader, num_classes=3, samples=40, test_samples=60, ridge=0.1)
    assert [probe.module for probe in found] == [1, 2, 3, 4]
    features = [pooled(each, 1024).double().numpy() for each in network.features(images)]
    for probe, rows in zip(found, features, strict=True):
        theirs = make_pipeline(StandardScaler(), SklearnRidge(alpha=0.1 * 40))
        theirs.fit(rows[:40], targets[:40].numpy())
        wrong = theirs.predict(rows) != targets.numpy()
        assert probe.error == pytest.approx(100 * wrong.mean())
        assert probe.train_error == pytest.approx(100 * wrong[:40].mean())
        assert probe.numbers == rows.shape[1] <= 1024


def test_pooled_features_are_no_more_than_asked_for() -> None:
    maps = torch.randn(2, 100, 8, 8)
    assert pooled(maps, 1024).shape == (2, 900)
    assert pooled(maps, 10).shape == (2, 100)
    assert pooled(maps[:, :4], 1024).shape == (2, 64)
    assert pooled(maps[:, :, :1, :1], 1024).shape == (2, 100)
    assert torch.equal(pooled(maps[:, :, 0, 0], 5), maps[:, :, 0, 0])
    assert torch.allclose(pooled(maps, 10), maps.mean((2, 3)), atol=1e-6)


def test_wrong_targets_and_no_samples() -> None:
    network = Network.of(small())
    images = torch.randn(4, 3, 16, 16)
    for targets, words in (
        (torch.tensor([0, 1, 2, 3]), "go up to 3; expected 0 to 2"),
        (torch.zeros(4, 2), "expected class indices"),
    ):
        with pytest.raises(UserError, match=words):
            probes(network, [(images, targets)], [], num_classes=3)
    with pytest.raises(UserError, match="there is no sample"):
        probes(network, [], [], num_classes=3)
    with pytest.raises(UserError, match="samples is 0"):
        probes(network, [(images, torch.zeros(4))], [], num_classes=3, samples=0)
