"""BatchNorm by the statistics of all ranks: the numbers of one process, on real processes."""

from __future__ import annotations

import pytest
import synchronized_cases as cases
import torch
from ranks import run_ranks
from synchronized_cases import SHARES, Case
from torch import Tensor

METHODS = ("dgl", "predsim", "infopro", "auglocal", "man")
CORE = [
    Case({"cascade": 2, "patches": 2}),
    Case({"cascade": 3, "patches": 2, "recompute": "blocks"}),
    Case({"method": "predsim", "cascade": 2, "patches": 1}),
]
ALL = [
    *(
        Case({"method": method, "cascade": k, "patches": n})
        for method in METHODS
        for k in (1, 2, 3)
        for n in (1, 2)
    ),
    *(
        Case({"cascade": k, "patches": 2, "recompute": way})
        for way in ("once", "blocks", "repeatedly")
        for k in (1, 2, 3)
    ),
    Case({"method": "infopro", "cascade": 2, "patches": 2, "recompute": "repeatedly"}),
    Case({"cascade": 4, "independent": False, "patches": 1}),
    Case({"method": "bp"}),
]


def check(world: int, trained: list[Case]) -> None:
    found = run_ranks(world, cases.by_ranks, trained)
    for each in found:
        assert not isinstance(each, str), each
    for i, case in enumerate(trained):
        for name, value in cases.by_one(case, SHARES[world]).items():
            for rank in range(world):
                assert torch.equal(found[rank][i][name], found[0][i][name]), (case, rank, name)
            off = _off(found[0][i][name], value)
            assert off < 1e-9, f"{case}: {name} is off by {off:.1e}"


def _off(found: Tensor, expected: Tensor) -> float:
    difference = (found.double() - expected.double()).abs()
    return (difference / expected.double().abs().clamp(min=1)).max().item()


def test_unequal_shares_give_the_weights_of_one_process(one_thread: None) -> None:
    check(2, CORE)


@pytest.mark.long
@pytest.mark.parametrize(("world", "trained"), [(2, ALL[:21]), (2, ALL[21:]), (3, ALL[1::4])])
def test_so_they_do_for_every_method_and_recomputation(
    world: int, trained: list[Case], one_thread: None
) -> None:
    check(world, trained)


@pytest.mark.parametrize("world", [2, 3])
def test_every_kind_of_batch_norm_sees_the_whole_batch(world: int, one_thread: None) -> None:
    found = run_ranks(world, cases.norms_by_ranks, list(cases.NORMS))
    for i, name in enumerate(cases.NORMS):
        expected, ranks = cases.norm_by_one(name), [each[i] for each in found]
        for key in ("output", "input"):
            whole = torch.cat([each[key] for each in ranks])
            torch.testing.assert_close(whole, expected[key], rtol=1e-9, atol=1e-9)
        for place, gradient in enumerate(expected["parameters"]):
            summed = torch.stack([each["parameters"][place] for each in ranks]).sum(0)
            torch.testing.assert_close(summed, gradient, rtol=1e-9, atol=1e-9)
        for each in ranks:
            torch.testing.assert_close(each["state"], expected["state"], rtol=1e-12, atol=1e-12)


def test_types_and_layouts_are_those_of_the_layer() -> None:
    for each in run_ranks(2, cases.in_few_bits):
        assert each["output"] == each["expected"]
        assert each["gradients"] == ["torch.bfloat16", "torch.float32"]
        assert each["channels last"]
        assert each["off"] < 0.04  # a unit of 16 bits near 4 is 0.03
        assert each["statistics off"] < 1e-4


def test_the_model_stays_as_it_is_and_inference_meets_nobody() -> None:
    for each in run_ranks(2, cases.traces):
        assert each == {"same": True, "finite": True, "own": []}


def test_compiled_blocks_are_refused() -> None:
    for each in run_ranks(1, cases.compiled):
        assert "compiled blocks cannot normalize by the statistics of all ranks" in each
