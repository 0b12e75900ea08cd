"""Pictures in the plane and separation scores, on clouds whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_learners import small
from torch import Tensor

from hpff.analysis import Network, embeddings, separation
from hpff.analysis.embeddings import scatter_ratio
from hpff.errors import UserError


def loader(count: int = 40) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 16, 16, generator=random)
    return [(images, torch.arange(count) % 4)]


def test_each_module_has_its_picture() -> None:
    seen: list[int] = []
    found = embeddings(
        Network.of(small()), loader(), samples=24, tsne=[1, 4], observe=lambda: seen.append(1)
    )
    assert [each.module for each in found] == [1, 2, 3, 4]
    assert len(seen) == 4
    for each in found:
        assert each.pca.shape == (24, 2)
        assert (each.tsne is not None) == (each.module in (1, 4))
        assert each.pca[:, 0].var() >= each.pca[:, 1].var()
        assert each.to_plain().keys() == {
            "module",
            "name",
            "samples",
            "silhouette",
            "scatter_ratio",
        }


def test_the_same_seed_gives_the_same_picture() -> None:
    network = Network.of(small(modules=2))
    first, second = (embeddings(network, loader(20), tsne=[2], seed=3)[1] for _ in range(2))
    assert first.tsne is not None
    assert second.tsne is not None
    assert np.array_equal(first.tsne, second.tsne)


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_scores_do_not_see_scale_and_shift(seed: int, scale: float, shift: float) -> None:
    random = np.random.default_rng(seed)
    rows, labels = random.normal(size=(30, 3)), np.arange(30) % 3
    first, second = separation(rows, labels), separation(scale * rows + shift, labels)
    assert second.silhouette == pytest.approx(first.silhouette, abs=1e-6)
    assert second.scatter_ratio == pytest.approx(first.scatter_ratio, rel=1e-6)


def test_scores_rise_as_classes_part() -> None:
    random = np.random.default_rng(0)
    noise, labels = random.normal(size=(60, 2)), np.arange(60) % 3
    centers = np.array([[0, 0], [1, 0], [0, 1]])[labels]
    scores = [separation(noise + far * centers, labels) for far in (0, 3, 30)]
    assert scores[0].silhouette < scores[1].silhouette < scores[2].silhouette
    assert scores[0].scatter_ratio < scores[1].scatter_ratio < scores[2].scatter_ratio
    assert scores[2].silhouette > 0.8


def test_the_scatter_ratio_by_hand() -> None:
    rows = np.array([[0.0], [2.0], [10.0], [12.0]])
    assert scatter_ratio(rows, np.array([0, 0, 1, 1])) == pytest.approx(100 / 4)


def test_too_few_samples() -> None:
    network = Network.of(small(modules=2))
    with pytest.raises(UserError, match="embeddings of 5 samples"):
        embeddings(network, loader(20), samples=5)
    images, targets = loader(20)[0]
    with pytest.raises(UserError, match="of 1 classes"):
        embeddings(network, [(images, torch.zeros_like(targets))])
