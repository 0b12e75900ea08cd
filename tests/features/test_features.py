"""Maps, channels-last maps, tokens, sequences and vectors: what is found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hpff.features import FeatureKind, Finder, Maps, Sequences, Tokens, Vectors, mask_of


class Learned(nn.Module):
    """A model that is only looked at: normalizations of some widths, and tokens it learns."""

    def __init__(self, *widths: int, **tokens: tuple[int, ...]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        for name, shape in tokens.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


def find(model: nn.Module, shape: tuple[int, ...], example: Tensor, *others: Any) -> FeatureKind:
    sides = (example.shape[2], example.shape[3]) if example.ndim == 4 else None
    return Finder(model, example, sides, [shape, *others]).at("block", shape)


IMAGES, TALL = torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 50, 70)


WORDS, SOUND = torch.zeros(2, 20, dtype=torch.int64), torch.zeros(2, 1, 100)


@pytest.mark.parametrize(
    ("model", "shape", "example", "expected"),
    [
        (Learned(96), (96, 8, 8), IMAGES, Maps()),
        (Learned(96), (8, 8, 96), IMAGES, Maps(channels_last=True)),
        (Learned(7), (7, 13, 18), TALL, Maps()),  # stride 4, rounded up
        (Learned(7), (12, 17, 7), TALL, Maps(channels_last=True)),  # stride 4, rounded down
        (Learned(24), (16, 49, 24), IMAGES, Maps(channels_last=True)),  # by the width alone
        (Learned(24), (24, 16, 49), IMAGES, Maps()),
        (Learned(8), (8, 8, 8), IMAGES, Maps()),
        (Learned(5), (5, 9, 4), SOUND, Maps()),
        (Learned(192), (64, 192), IMAGES, Tokens()),
        (Learned(192, cls_token=(1, 1, 192)), (65, 192), IMAGES, Tokens(1)),
        (Learned(192), (65, 192), IMAGES, Tokens(1)),
        (Learned(192, cls_token=(1, 1, 192)), (64, 192), IMAGES, Tokens()),  # joins later
        (Learned(8, class_embedding=(8,), register_tokens=(1, 4, 8)), (9, 8), IMAGES, Tokens(5)),
        (Learned(8), (9, 8), IMAGES, Tokens()),
        (Learned(8, cls_token=(1, 1, 8)), (13 * 18 + 1, 8), TALL, Tokens(1)),
        (Learned(8), (48, 8), IMAGES, Tokens(12)),
        (Learned(8), (60, 8), IMAGES, Tokens(11)),
        (Learned(8), (20, 8), WORDS, Sequences()),
        (Learned(20), (8, 20), WORDS, Sequences(channels_first=True)),
        (Learned(16), (16, 100), SOUND, Sequences(channels_first=True)),
        (Learned(16), (100, 16), SOUND, Sequences()),
        (Learned(16), (16, 4, 5, 5), torch.zeros(2, 3, 4, 9, 9), Sequences(channels_first=True)),
        (Learned(16), (10,), IMAGES, Vectors()),
    ],
)
def test_kinds_are_found(
    model: nn.Module, shape: tuple[int, ...], example: Tensor, expected: FeatureKind
) -> None:
    assert find(model, shape, example) == expected


def test_maps_that_could_be_either_go_with_the_others() -> None:
    model = Learned(8)
    assert find(model, (8, 8, 8), IMAGES, (16, 16, 8)) == Maps(channels_last=True)
    assert find(model, (8, 8, 8), IMAGES, (8, 16, 16), (16, 16, 8)) == Maps()


@given(
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    prefix=st.integers(0, 3),
    given_grid=st.booleans(),
)
def test_tokens_become_maps(height: int, width: int, prefix: int, given_grid: bool) -> None:
    tokens = torch.randn(2, prefix + height * width, 3)
    sides = (8 * height, 8 * width)
    features = Tokens(prefix, (height, width) if given_grid else None)
    seen = features.features(tokens, 1, None if given_grid else sides, None)
    assert seen.shape[1:] == features.features_shape(tuple(tokens.shape[1:]), sides)
    for row in range(height):
        for column in range(width):
            assert torch.equal(seen[:, :, row, column], tokens[:, prefix + row * width + column])
    shared = features.shared(tokens)
    if prefix:
        assert shared is not None
        assert torch.equal(shared, tokens[:, :prefix].mean(1))
    else:
        assert shared is None


def pieces_by_hand(rows: Tensor, valid: Tensor, n: int) -> Tensor:
    """Each sample's own tokens, adaptively pooled by PyTorch."""
    pooled = [
        F.adaptive_avg_pool1d(sample[keep].T[None], n)[0].T if keep.any() else rows.new_zeros(n, 3)
        for sample, keep in zip(rows, valid, strict=True)
    ]
    return torch.stack(pooled)


@given(data=st.data(), n=st.integers(1, 5), length=st.integers(1, 9))
def test_pieces_of_a_sequence_are_adaptive_means(data: st.DataObject, n: int, length: int) -> None:
    marks = st.lists(st.booleans(), min_size=length, max_size=length)
    valid = torch.tensor([data.draw(marks), data.draw(marks), [True] * length])
    rows = torch.randn(3, length, 3, dtype=torch.float64)

    seen = Sequences().features(rows, n, None, valid)

    expected = pieces_by_hand(rows, valid, n)
    torch.testing.assert_close(seen, expected[:, 0] if n == 1 else expected)
    first = Sequences(channels_first=True)
    torch.testing.assert_close(first.features(rows.mT, n, None, valid), seen)
    whole = Sequences().features(rows, n, None, None)
    torch.testing.assert_close(
        whole, Sequences().features(rows, n, None, torch.ones(3, length) > 0)
    )


def test_masks_of_other_lengths() -> None:
    rows = torch.tensor([[1.0, 2, 3, 4, 5]])[..., None]
    mask = torch.tensor([[True, True, False]])
    assert Sequences().features(rows, 1, None, mask).item() == (1 + 2 + 3 + 4) / 4  # two in front
    long = torch.tensor([[True, True, True, False, False] + [False] * 5])
    assert Sequences().features(rows, 1, None, long).item() == 1.5  # each token of two inputs


def test_masks_are_found_by_name() -> None:
    class Model(nn.Module):
        def forward(self, words: Tensor, types: Tensor, src_key_padding_mask: Tensor) -> Tensor:
            return words

    mask = torch.tensor([[1, 1, 0]])
    words = torch.tensor([[1, 2, 3]])
    expected = mask == 1
    assert torch.equal(_found({"input_ids": words, "attention_mask": mask}), expected)
    assert torch.equal(_found({"words": words, "src_key_padding_mask": mask == 0}), expected)
    found = mask_of(Model(), (words, words, mask == 0))
    assert found is not None
    assert torch.equal(found, expected)
    assert mask_of(Model(), (words, words)) is None
    assert mask_of(Model(), {"words": words, "attention_mask": None}) is None
    assert mask_of(Model(), words) is None


def _found(inputs: dict[str, Tensor]) -> Tensor:
    found = mask_of(nn.Identity(), inputs)
    assert found is not None
    return found
