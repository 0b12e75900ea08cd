"""Batches that worker processes decode: seeds, what is passed over, and workers that end."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from hpff.data.broken import BrokenImages
from hpff.data.decode import BrokenImageError
from hpff.data.decoding import DecodedBatches, Decoding
from hpff.errors import UserError

ENDS = -1


class Numbers(Decoding):
    """An item is its index and its seed; those of ``broken`` cannot be read."""

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self._broken = broken

    def decode(self, index: int, seed: int) -> tuple[Tensor, Tensor]:
        if index == ENDS:
            os._exit(1)
        if index in self._broken:
            raise BrokenImageError("is broken")
        return torch.tensor([index]), torch.tensor(seed)

    def where(self, index: int) -> str:
        return f"item {index}"


def passing(
    decoding: Decoding, order: list[int], *, fewest: int = 1, workers: int = 0
) -> list[tuple[list[int], list[int]]]:
    batches = DecodedBatches(
        decoding,
        2,
        fewest=fewest,
        workers=workers,
        pin=False,
        stay=False,
        broken=BrokenImages("skip"),
    )
    seeds = 10 * torch.arange(len(order))
    return [
        (decoded.images.flatten().tolist(), decoded.labels.tolist())
        for decoded in batches.in_order(torch.tensor(order), seeds)
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_place_of_a_pass_has_its_seed(workers: int) -> None:
    found = passing(Numbers(), [4, 1, 4, 0, 2], workers=workers)
    assert found == [([4, 1], [0, 10]), ([4, 0], [20, 30]), ([2], [40])]


def test_a_batch_that_is_left_with_too_few_is_passed_over() -> None:
    assert passing(Numbers((1,)), [0, 1, 2, 3], fewest=2) == [([2, 3], [20, 30])]
    with pytest.raises(UserError, match="item 1: so many images cannot be read"):
        passing(Numbers((1,)), [0, 1], fewest=2)


def test_a_worker_that_ends_is_one_line() -> None:
    with pytest.raises(UserError, match="a process that reads images ended"):
        passing(Numbers(), [0, ENDS], workers=1)
