"""Learning on tokens, channels-last maps and sequences: exact, and on what methods see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from naive.patches import WAYS
from torch import Tensor, nn

from hpff import LocalLearner, check_gradients
from hpff.errors import UserError
from hpff.features import Maps, Sequences, Tokens


class Block(nn.Module):
    """Tokens look at each other, if they may, then at themselves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.Tanh())

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.mix(self.norm(x)).chunk(3, dim=-1)
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(mask[:, None] == 0, -1e30)
        x = x + scores.softmax(-1) @ v
        return x + self.mlp(x)


class Transformer(nn.Module):
    """Of images (with ``prefix`` learned tokens in front) or of words."""

    def __init__(self, width: int, depth: int, prefix: int = 0, words: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width) if words else nn.Conv2d(3, width, 2, 2)
        self.cls_token = nn.Parameter(torch.randn(1, prefix, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed(x)
        x = x.flatten(2).mT if x.ndim == 4 else x
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x, attention_mask)
        if attention_mask is None:
            return self.head(x.mean(1))
        weight = attention_mask[..., None].to(x.dtype)
        return self.head((x * weight).sum(1) / weight.sum(1).clamp(min=1))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    sides=st.tuples(st.sampled_from([2, 4, 6, 10]), st.sampled_from([4, 6, 8])),
    width=st.sampled_from([3, 5]),
    prefix=st.integers(0, 2),
    n=st.integers(1, 3),
    smallest=st.integers(1, 2),
    method=st.sampled_from(["dgl", "predsim", "infopro", "auglocal"]),
    mode_and_norm=st.sampled_from(WAYS),
)
def test_tokens_are_exact(
    seed: int,
    sides: tuple[int, int],
    width: int,
    prefix: int,
    n: int,
    smallest: int,
    method: str,
    mode_and_norm: tuple[str, str],
) -> None:
    torch.manual_seed(seed)
    model = Transformer(width, 3, prefix).double()
    images, targets = torch.rand(4, 3, *sides, dtype=torch.float64), torch.randint(3, (4,))
    learner = LocalLearner(
        model,
        modules=3,
        example=images[:2],
        num_classes=3,
        method=method,
        patches=n,
        smallest_patch=smallest,
        patch_mode=mode_and_norm[0],
        patch_norm=mode_and_norm[1],
    )
    grid = (sides[0] // 2, sides[1] // 2)
    fits = [m for m in range(2, n + 1) if all(s % m == 0 and s // m >= smallest for s in grid)]
    assert {m.features for m in learner.partition[:-1]} == {Tokens(prefix)}
    assert learner.partition[0].patches == max(fits, default=1)
    assert check_gradients(learner, images, targets) == {}


@pytest.mark.parametrize("patches", [1, 2])
def test_class_tokens_are_seen_at_every_position(patches: int) -> None:
    """A network sees the mean of the positions (of its patch), and the class tokens' mean."""
    model = Transformer(4, 3, prefix=2).double()
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    learner = LocalLearner(model, modules=3, example=images, num_classes=3, patches=patches)
    output = torch.randn(4, 2 + 16, 4, dtype=torch.float64)
    seen = learner.auxiliary_networks.features(1, output, images, None)
    grid = output[:, 2:].mT.reshape(4, 4, 4, 4)
    means = F.adaptive_avg_pool2d(grid, patches) + output[:, :2].mean(1)[:, :, None, None]
    torch.testing.assert_close(seen, means)


class Sentences(nn.Sequential):
    """Blocks whose features are channels-last maps, (B, H, W, C)."""

    def __init__(self, width: int) -> None:
        blocks = [
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.Tanh()) for _ in "12"
        ]
        super().__init__(nn.Conv2d(3, width, 2, 2), _Last(), *blocks, _Mean(), nn.Linear(width, 3))


class _Last(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2))


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    side=st.sampled_from([4, 8, 12]),
    width=st.sampled_from([3, 7]),
    n=st.integers(1, 3),
    method=st.sampled_from(["dgl", "predsim", "infopro", "auglocal"]),
    mode_and_norm=st.sampled_from(WAYS),
)
def test_channels_last_maps_are_exact(
    seed: int, side: int, width: int, n: int, method: str, mode_and_norm: tuple[str, str]
) -> None:
    torch.manual_seed(seed)
    model = Sentences(width).double()
    images, targets = torch.rand(4, 3, side, side, dtype=torch.float64), torch.randint(3, (4,))
    learner = LocalLearner(
        model,
        modules=["2", "3"],
        example=images[:2],
        num_classes=3,
        method=method,
        patches=n,
        patch_mode=mode_and_norm[0],
        patch_norm=mode_and_norm[1],
    )
    assert learner.partition[0].features == Maps(channels_last=True)
    assert check_gradients(learner, images, targets) == {}


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    length=st.integers(1, 7),
    width=st.sampled_from([3, 5]),
    n=st.integers(1, 4),
    smallest=st.integers(1, 2),
    method=st.sampled_from(["dgl", "predsim"]),
    mode_and_norm=st.sampled_from(WAYS),
    masked=st.booleans(),
)
def test_sequences_are_exact(
    seed: int,
    length: int,
    width: int,
    n: int,
    smallest: int,
    method: str,
    mode_and_norm: tuple[str, str],
    masked: bool,
) -> None:
    torch.manual_seed(seed)
    model = Transformer(width, 3, words=True).double()
    words, targets = torch.randint(11, (4, length)), torch.randint(3, (4,))
    mask = torch.rand(4, length) < 0.6  # a sample may have no token at all
    inputs = {"x": words, "attention_mask": mask} if masked else words
    learner = LocalLearner(
        model,
        modules=3,
        example=inputs,
        num_classes=3,
        method=method,
        patches=n,
        smallest_patch=smallest,
        patch_mode=mode_and_norm[0],
        patch_norm=mode_and_norm[1],
    )
    assert learner.partition[0].features == Sequences()
    assert learner.partition[0].patches == min(n, max(1, length // smallest))
    assert check_gradients(learner, inputs, targets) == {}


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), longer=st.integers(1, 5), n=st.integers(1, 3))
def test_padding_changes_nothing(seed: int, longer: int, n: int) -> None:
    torch.manual_seed(seed)
    model = Transformer(4, 3, words=True).double()
    words, targets = torch.randint(11, (4, 6)), torch.randint(3, (4,))
    mask = torch.arange(6) < torch.tensor([[6], [1], [3], [4]])
    learner = LocalLearner(model, modules=3, example=(words, mask), num_classes=3, patches=n)

    def step(words: Tensor, mask: Tensor) -> list[Tensor]:
        learner.zero_grad()
        losses = learner.backward((words, mask), targets)
        return [losses.total, *(p.grad for p in learner.parameters() if p.grad is not None)]

    short = step(words, mask)
    long = step(F.pad(words, (0, longer), value=9), F.pad(mask, (0, longer)))
    for one, other in zip(short, long, strict=True):
        torch.testing.assert_close(one, other)


def test_pieces_see_their_own_tokens() -> None:
    """With n pieces, a token's gradient from a level is through its own piece alone."""
    rows = torch.randn(2, 6, 3, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]]) > 0
    Sequences().features(rows, 2, None, mask)[:, 1].sum().backward()
    assert rows.grad is not None
    touched = (rows.grad != 0).all(2)
    assert touched.tolist() == [[False] * 3 + [True] * 3, [False, True] + [False] * 4]


def test_images_of_another_size_have_another_grid() -> None:
    model = Transformer(4, 3, prefix=1).double()
    images, targets = torch.randn(4, 3, 8, 12, dtype=torch.float64), torch.randint(3, (4,))
    learner = LocalLearner(model, modules=3, example=images[:2], num_classes=3)
    assert learner.partition[0].patches == 2
    for sides, n in (((8, 8), 2), ((10, 8), 1)):
        other = torch.randn(4, 3, *sides, dtype=torch.float64)
        assert check_gradients(learner, other, targets) == {}
        assert learner.auxiliary_networks.at("cascade", 2).patches == n
    assert check_gradients(learner, images, targets) == {}


def test_the_user_has_the_last_word() -> None:
    model, images = Transformer(4, 3, prefix=1).double(), torch.rand(4, 3, 8, 8).double()
    targets = torch.randint(3, (4,))
    for said, found in (
        ("tokens", Tokens(1)),
        ("sequence", Sequences()),
        (Tokens(1, (2, 8)), Tokens(1, (2, 8))),
        ({"blocks.0": "sequence"}, Sequences()),
        ({"blocks.1": "sequence"}, Tokens(1)),
    ):
        learner = LocalLearner(model, modules=3, example=images, num_classes=3, features=said)
        assert learner.partition[0].features == found
        assert check_gradients(learner, images, targets) == {}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("tokenz", "'tokenz' is no kind; expected one of: map, map-last, tokens"),
        ({"blocks.7": "map"}, "'blocks.7' is no cut; the cuts are blocks.0, blocks.1"),
        ({"blocks.0": 3}, "3 is no kind"),
        ("map", r"'blocks.0' has shape \(B, 17, 4\), which is no map"),
        (Tokens(2), "17 tokens with 2 in front of the grid"),
    ],
)
def test_wrong_features_are_named(said: Any, message: str) -> None:
    model, images = Transformer(4, 3, prefix=1), torch.rand(2, 3, 8, 8)
    with pytest.raises(UserError, match=message):
        LocalLearner(model, modules=3, example=images, num_classes=3, features=said)


@pytest.mark.parametrize("method", ["infopro", "auglocal"])
def test_methods_of_maps_refuse_what_has_no_grid(method: str) -> None:
    model, images = Transformer(4, 3), torch.rand(2, 3, 8, 8)
    with pytest.raises(UserError, match="module 1 gives a sequence of width 4; use dgl or predsim"):
        LocalLearner(
            model, modules=3, example=images, num_classes=3, method=method, features="sequence"
        )


def test_the_partition_shows_features_and_n() -> None:
    model, images = Transformer(4, 3, prefix=1), torch.rand(2, 3, 8, 8)
    learner = LocalLearner(
        model, modules=3, example=images, num_classes=3, features={"blocks.1": "sequence"}
    )
    lines = str(learner.partition).splitlines()
    assert lines[1].endswith("17×4    tokens, 1 in front  2×2")
    assert lines[2].endswith("17×4    sequence            2")
