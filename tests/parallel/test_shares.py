"""Shares of a batch that are not of one size, as where images were left out of it."""

from __future__ import annotations

import pytest
import team_cases as cases
import torch
from ranks import run_ranks


@pytest.mark.parametrize(
    ("kind", "world"), [("data", 2), pytest.param("grid", 4, marks=pytest.mark.long)]
)
def test_shares_of_other_sizes_give_the_weights_and_means_of_one_process(
    kind: str, world: int, one_thread: None
) -> None:
    found = run_ranks(world, cases.trained, kind)
    for each in found:
        assert not isinstance(each, str), each
    weights, means = cases.trained("alone")
    for name, value in weights.items():
        torch.testing.assert_close(found[0][0][name], value, rtol=1e-9, atol=1e-11)
    for _, each in found:
        for key, value in means.items():
            assert each[key] == pytest.approx(value, rel=1e-5), key
