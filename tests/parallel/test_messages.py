"""Tensors of all types arrive as they were."""

from __future__ import annotations

import message_cases as cases
import pytest
import torch
from ranks import run_ranks
from torch import Tensor

from hpff.errors import UserError
from hpff.parallel.messages import Outbox


def check(found: list[Tensor]) -> None:
    for expected, tensor in zip(cases.tensors(), found, strict=True):
        assert tensor.dtype == expected.dtype
        wide = torch.float64 if "float8" in str(tensor.dtype) else tensor.dtype
        assert torch.equal(tensor.to(wide), expected.to(wide)), tensor.dtype


def test_tensors_of_all_types_arrive_in_their_layout() -> None:
    _, received = run_ranks(2, cases.sent)
    assert not isinstance(received, str), received
    check(received)
    assert received[0].stride() == cases.tensors()[0].stride()


def test_buffers_of_all_types_are_shared() -> None:
    for each in run_ranks(2, cases.shared_buffers):
        assert not isinstance(each, str), each
        check(each)


def test_a_type_that_cannot_travel_is_named() -> None:
    with pytest.raises(UserError, match="tensors of type bits8 cannot travel"):
        Outbox(1, None, 0, 1.0).send(torch.empty(2, dtype=torch.bits8))
