"""What a metered step says of each module's costs."""

from __future__ import annotations

import pytest
import torch
from naive.rule import random_chain

from hpff.cutting.partition import partition
from hpff.engine.reach import Reach
from hpff.parallel.metering import costs_of


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_gradients_time_is_shared_out_among_those_that_were_computed(k: int) -> None:
    """One of the weights, and one of the input for each cascade that goes on below."""
    cut = partition(random_chain(2, 4, norm=False, side=8), 4, torch.zeros(2, 3, 8, 8).double())
    seconds = {(doing, j): 1.0 for doing in ("forward", "auxiliary") for j in range(1, 5)}
    for j in range(1, 5):
        seconds["carry", j], seconds["complete", j] = 5.0, 7.0
    found = costs_of(seconds, cut, Reach.uniform(4, k))  # type: ignore[arg-type]
    below = {1: [0, 0, 0, 0], 2: [0, 1, 1, 1], 3: [0, 1, 2, 1]}[k]
    assert [cost.input_gradient for cost in found] == [12 / (1 + n) for n in below]
    assert [cost.weight_gradient for cost in found] == [cost.input_gradient for cost in found]
    assert {cost.forward for cost in found} == {cost.auxiliary for cost in found} == {1.0}
