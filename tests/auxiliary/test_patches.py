"""Patch feature fusion."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hpff import LocalLearner, models
from hpff.auxiliary import BatchStatisticsNorm, ConvMLP, PatchFusion, cut, patches_in_force
from hpff.auxiliary.patches import graph_bytes
from hpff.errors import UserError
from hpff.memory import AllocationCounter
from hpff.methods import AuxiliaryContext, Method


@given(n=st.integers(1, 4), h=st.integers(1, 4), w=st.integers(1, 4))
def test_cut_gives_the_windows_row_by_row(n: int, h: int, w: int) -> None:
    features = torch.randn(2, 3, n * h, n * w)
    patches = cut(features, n)
    for row in range(n):
        for column in range(n):
            window = features[:, :, row * h : (row + 1) * h, column * w : (column + 1) * w]
            assert torch.equal(patches[:, row * n + column], window)


@given(
    shape=st.tuples(st.just(3), st.integers(1, 40), st.integers(1, 40)),
    wanted=st.integers(1, 6),
    smallest=st.integers(1, 9),
)
def test_n_in_force_is_the_largest_that_fits(
    shape: tuple[int, int, int], wanted: int, smallest: int
) -> None:
    n = patches_in_force(wanted, shape, smallest=smallest)
    fits = [m for m in range(2, wanted + 1) if shape[1] % m == 0 and shape[2] % m == 0]
    assert n == max((m for m in fits if min(shape[1:]) // m >= smallest), default=1)
    assert patches_in_force(wanted, (7,)) == 1


class TwoOutputs(nn.Module):
    """With ordinary BatchNorms, and outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Tanh(), nn.Conv2d(5, 4, 1)
        )
        self.affine_free = nn.BatchNorm1d(4, affine=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x)
        return {"scores": self.affine_free(x.mean((2, 3))), "energy": x.pow(2).flatten(1).sum(1)}


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("together", [True, False])
def test_both_modes_equal_a_loop_with_ordinary_batch_norm(n: int, together: bool) -> None:
    torch.manual_seed(0)
    network = TwoOutputs().double()
    weights = list(network.parameters())
    features = torch.randn(4, 3, 12, 12, dtype=torch.float64, requires_grad=True)
    size = 12 // n
    looped = [
        network(features[:, :, r * size : (r + 1) * size, c * size : (c + 1) * size])
        for r in range(n)
        for c in range(n)
    ]
    mean = {key: sum(out[key] for out in looped) / n**2 for key in looped[0]}
    target = (mean["scores"] ** 3).sum() + mean["energy"].sum()
    expected = torch.autograd.grad(target, [features, *weights])

    fusion = PatchFusion(network, n, together=together)
    outputs = fusion(features)
    found = torch.autograd.grad(
        (outputs["scores"] ** 3).sum() + outputs["energy"].sum(), [features, *weights]
    )

    assert [p for p in fusion.parameters() if p.requires_grad] == weights
    assert outputs.keys() == mean.keys()
    for key, value in mean.items():
        torch.testing.assert_close(outputs[key], value)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_one_by_one_holds_the_graph_of_one_patch() -> None:
    def peak(together: bool) -> int:
        network = nn.Sequential(
            nn.Conv2d(4, 32, 3, padding=1), nn.Tanh(), nn.Conv2d(32, 4, 3, padding=1), nn.Flatten()
        )
        fusion = PatchFusion(network, 4, together=together)
        features = torch.randn(2, 4, 64, 64, requires_grad=True)
        with AllocationCounter() as counter:
            fusion(features).sum().backward()
        return counter.peak

    assert peak(together=False) < peak(together=True) / 4


def test_graph_bytes_counts_what_backward_needs() -> None:
    network = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Tanh(), nn.Tanh())
    features = torch.randn(4, 8)
    outputs = 2 * 4 * 16 * 4  # each tanh saves its output; the linear layer its input, not counted
    assert graph_bytes(network, features) == outputs


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("rows", [False, True])
def test_norm_uses_each_positions_own_statistics(groups: int, rows: bool) -> None:
    norm = BatchStatisticsNorm(3).double()
    norm.groups = groups
    x = torch.randn(5 * groups, 3, *(() if rows else (2, 2)), dtype=torch.float64)
    out = norm.of_rows(x, groups) if rows else norm(x)
    for g in range(groups):
        position = out[g::groups] if rows else out[5 * g : 5 * (g + 1)]
        flat = position.transpose(0, 1).flatten(1)
        torch.testing.assert_close(flat.mean(1), torch.zeros(3, dtype=torch.float64))
        torch.testing.assert_close(
            flat.var(1, correction=0), torch.ones(3, dtype=torch.float64), rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize("rows", [False, True])
def test_norm_of_all_positions_together(rows: bool) -> None:
    norm = BatchStatisticsNorm(3).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    out = norm.of_rows(x, 4) if rows else norm(x)
    torch.testing.assert_close(out, (x - x.mean(0)) / (x.var(0, correction=0) + norm.eps).sqrt())


@pytest.mark.parametrize("network", ["ConvMLP", "a chain"])
def test_outputs_of_patches_whose_statistics_are_common_have_the_fused_ones_as_their_mean(
    network: str,
) -> None:
    chain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    inner = ConvMLP(3, 5) if network == "ConvMLP" else chain
    apart, together = (
        PatchFusion(copy.deepcopy(inner), 2, norm=norm).double() for norm in ("apart", "together")
    )
    maps = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(together.of_patches(maps).mean(0), together(maps))
    assert not torch.allclose(together(maps), apart(maps))


def test_statistics_of_all_patches_need_all_patches() -> None:
    with pytest.raises(UserError, match="need all patches in one batch"):
        PatchFusion(ConvMLP(3, 5), 2, together=False, norm="together")


class Wide(Method):
    """A method whose networks keep much more than the backbone does."""

    def __init__(self, width: int) -> None:
        self.width = width

    def auxiliary(self, context: AuxiliaryContext) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(context.features[0], self.width, 1),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(self.width, context.num_classes),
        )


@pytest.mark.parametrize(("width", "together"), [(4, True), (256, False)])
def test_auto_runs_patches_one_by_one_only_where_that_saves_memory(
    width: int, together: bool
) -> None:
    learner = LocalLearner(
        models.create("resnet20", width=4),
        modules=["layer1.2", "layer2.0"],
        example=torch.zeros(2, 3, 16, 16),
        num_classes=10,
        method=Wide(width),
        cascade=1,
    )
    assert learner.auxiliary_networks.at("independent", 2).together is together


def test_auto_uses_the_room_where_fewer_bytes_of_graphs_are_alive() -> None:
    """InfoPro's decoders enlarge maps to the image, wherever they stand."""

    def together(**changes: Any) -> list[bool]:
        learner = LocalLearner(
            models.create("resnet20"),
            modules=10,
            example=torch.zeros(2, 3, 32, 32),
            num_classes=10,
            method="infopro",
            **changes,
        )
        return [learner.auxiliary_networks.at("independent", j).together for j in range(1, 10)]

    narrow = together()[6:]  # the widest modules hold more than these
    assert all(narrow)
    assert not any(together(recompute="repeatedly"))  # no graphs are held: there is no such room


def test_dgl_on_a_resnet_runs_all_patches_together() -> None:
    learner = LocalLearner(
        models.create("resnet32"), modules=16, example=torch.zeros(2, 3, 32, 32), num_classes=10
    )
    networks = [*learner.independent_auxiliary.values(), *learner.cascade_auxiliary.values()]
    assert all(network.together for network in networks)
