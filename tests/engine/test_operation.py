"""What is known of operations below autograd, and how their arguments are gone through."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from hpff.engine.leaves import leaves_of, mapped
from hpff.engine.operation import Value, View, copy_of, whole_of
from hpff.engine.traits import traits_of

ATEN = torch.ops.aten
TREES = some.recursive(
    some.none() | some.integers() | some.floats(allow_nan=False),
    lambda inner: (
        some.lists(inner)
        | some.lists(inner).map(tuple)
        | some.dictionaries(some.sampled_from("abc"), inner)
    ),
)


@given(TREES)
def test_leaves_are_those_of_pytorch(tree: Any) -> None:
    assert leaves_of(tree) == tree_leaves(tree)


@given(TREES)
def test_only_leaves_of_a_kind_are_mapped(tree: Any) -> None:
    doubled = tree_map(lambda leaf: 2 * leaf if isinstance(leaf, float) else leaf, tree)
    assert mapped(float, lambda leaf: 2 * leaf, tree) == doubled


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (ATEN.detach.default, ()),
        (ATEN.view.default, ([6],)),
        (ATEN.t.default, ()),
        (ATEN.expand.default, ([4, 2, 3],)),
        (ATEN.split.Tensor, (1,)),
        (ATEN.unbind.int, ()),
        (ATEN.as_strided.default, ([2], [1])),
    ],
)
def test_what_only_looks_gives_the_storage_it_was_given(function: Any, arguments: Any) -> None:
    assert traits_of(function).only_looks
    tensor = torch.arange(6.0).view(2, 3)
    for leaf in leaves_of(function(tensor, *arguments)):
        assert leaf.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    "function",
    [
        *(ATEN.relu.default, ATEN.relu_.default, ATEN.clone.default, ATEN.add.Tensor),
        *(ATEN.native_batch_norm.default, ATEN.as_strided_.default, ATEN.dropout.default),
        torch.ops.prim.device.default,  # what fake tensors ask
        *(ATEN.to.dtype, ATEN.reshape.default, ATEN.contiguous.default),  # may copy
    ],
)
def test_what_makes_or_changes_does_more_than_look(function: Any) -> None:
    assert not traits_of(function).only_looks


def test_what_is_changed_in_place_is_known_by_place_and_name() -> None:
    one, other = torch.zeros(2), torch.ones(2)
    assert traits_of(ATEN.add_.Tensor).changed((one, other), {}) == [one]
    assert traits_of(ATEN.add.out).changed((one, one), {"out": other}) == [other]
    assert traits_of(ATEN._foreach_add_.Scalar).changed(([one, other], 1), {}) == [one, other]
    assert traits_of(ATEN.add.Tensor).changed((one, other), {}) == []


def test_what_draws_is_dear_or_moves_statistics_is_known() -> None:
    assert traits_of(ATEN.native_dropout.default).draws
    assert traits_of(ATEN.mm.default).dear
    assert traits_of(ATEN.native_batch_norm.default).moves_statistics
    assert not any(traits_of(ATEN.relu.default)[3:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
def test_a_view_is_seen_again_on_the_storage_and_on_a_copy(dtype: torch.dtype) -> None:
    storage = torch.arange(24, dtype=torch.float32)
    tensor = storage.view(dtype).as_strided((2, 3), (7, 2), 4)
    view = View(Value(0, 0), dtype, tensor.shape, tensor.stride(), int(tensor.storage_offset()))
    for whole in (storage, whole_of(storage[5:9]), copy_of(whole_of(storage[5:9]))):
        assert _same(view.of(whole), tensor)
    copy_of(whole_of(storage)).zero_()
    assert _same(storage, torch.arange(24, dtype=torch.float32))


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) and one.stride() == other.stride()
