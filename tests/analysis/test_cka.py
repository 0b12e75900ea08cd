"""CKA: known values, invariances, and an independent computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_learners import IMAGES, TARGETS, small
from torch import Tensor, nn

from hpff.analysis import CKA, Network, cka
from hpff.errors import UserError


def cka_of(first: Tensor, second: Tensor, batch: int | None = None) -> float:
    sums = CKA()
    size = batch or len(first)
    for start in range(0, len(first), size):
        part = slice(start, start + size)
        sums.update([first[part]], [second[part]])
    return float(sums.result()[0, 0])


def by_hand(first: Tensor, second: Tensor) -> float:
    """Song et al.'s unbiased HSIC, element by element, in NumPy."""

    def hsic(k: np.ndarray, el: np.ndarray) -> float:
        n = len(k)
        k, el = k * (1 - np.eye(n)), el * (1 - np.eye(n))
        one = np.ones(n)
        trace = sum(k[i, j] * el[j, i] for i in range(n) for j in range(n))
        total = (one @ k @ one) * (one @ el @ one) / ((n - 1) * (n - 2))
        return float((trace + total - 2 / (n - 2) * one @ k @ el @ one) / (n * (n - 3)))

    x, y = first.flatten(1).double().numpy(), second.flatten(1).double().numpy()
    k, el = x @ x.T, y @ y.T
    return hsic(k, el) / np.sqrt(hsic(k, k) * hsic(el, el))


def test_identical_features_are_alike() -> None:
    x = torch.randn(20, 7)
    assert cka_of(x, x) == pytest.approx(1)
    assert cka_of(x, x, batch=5) == pytest.approx(1)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    width=st.integers(1, 12),
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-100, 100),
)
def test_rotation_scale_and_shift_change_nothing(
    seed: int, width: int, scale: float, shift: float
) -> None:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(16, width, generator=random, dtype=torch.float64)
    y = torch.randn(16, 5, generator=random, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(width, width, generator=random, dtype=torch.float64)).Q
    moved = scale * (x @ turn) + shift
    assert cka_of(x, moved) == pytest.approx(1, abs=1e-6)
    assert cka_of(moved, y) == pytest.approx(cka_of(x, y), abs=1e-6)
    assert cka_of(y, x) == pytest.approx(cka_of(x, y), abs=1e-9)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), samples=st.integers(4, 12))
def test_it_is_what_numpy_finds(seed: int, samples: int) -> None:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 2, 3, generator=random, dtype=torch.float64)
    y = x.flatten(1)[:, :2] + torch.randn(samples, 2, generator=random, dtype=torch.float64)
    hand = by_hand(x, y)
    if np.isfinite(hand):
        assert cka_of(x, y) == pytest.approx(hand, rel=1e-6, abs=1e-9)


def test_independent_features_are_unlike_in_small_batches_too() -> None:
    """The biased HSIC would say 0.5 here: that is what the unbiased one is for."""
    x, y = torch.randn(4000, 30), torch.randn(4000, 30)
    assert abs(cka_of(x, y)) < 0.02
    assert abs(cka_of(x, y, batch=20)) < 0.05


def test_batches_agree_with_all_samples_together() -> None:
    x = torch.randn(3000, 6)
    y = torch.relu(x @ torch.randn(6, 6)) + 0.5 * torch.randn(3000, 6)
    assert cka_of(x, y, batch=100) == pytest.approx(cka_of(x, y), abs=0.03)


def test_constant_features_are_like_nothing() -> None:
    x = torch.randn(10, 3)
    assert cka_of(torch.ones(10, 3), x) == 0


def test_small_batches_are_left_out() -> None:
    x = torch.randn(23, 3)
    assert cka_of(x, x[:, :2], batch=10) == pytest.approx(cka_of(x[:20], x[:20, :2], batch=10))
    with pytest.raises(UserError, match="batches of 4"):
        CKA().result()


def test_all_modules_of_two_networks() -> None:
    network, other = Network.of(small(), label="a"), Network.of(small(modules=3), label="b")
    loader = [(IMAGES, TARGETS)] * 2
    with_itself = cka(network, network, loader)
    assert [with_itself.values[j][j] for j in range(4)] == pytest.approx([1] * 4)
    assert with_itself.values[0][2] == pytest.approx(with_itself.values[2][0])
    assert with_itself.samples == 12
    found = cka(network, other, loader, samples=6)
    assert (found.first, found.second, found.samples) == ("a", "b", 6)
    assert (len(found.rows), len(found.columns)) == (4, 3)
    outputs: list[Tensor] = []
    with torch.no_grad():
        network.model.eval()
        handle = network.model.get_submodule(network.places[1].name).register_forward_hook(
            lambda _m, _a, out: outputs.append(out)
        )
        network.model(IMAGES)
        handle.remove()
        theirs = other.features(IMAGES)[0]
    assert found.values[1][0] == pytest.approx(by_hand(outputs[0], theirs), rel=1e-5)


def test_two_loaders_show_each_network_its_own_images() -> None:
    network = Network.of(small(), label="a")
    shifted = Network.of(Shifted(network.model), modules=["model.layer1.0"], example=IMAGES[:2])
    loader, theirs = [(IMAGES, TARGETS)], [(IMAGES - 1, TARGETS)]
    rows = [place.name for place in network.places]
    found = cka(network, shifted, loader, second_loader=theirs)
    assert len(found.values) == len(rows)
    apart = cka(shifted, shifted, theirs, second_loader=theirs)
    assert apart.values[0][0] == pytest.approx(1)


class Shifted(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images + 1)
