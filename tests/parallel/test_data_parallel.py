"""The data shared out over real processes: the gradients of one process, reduced as they come."""

from __future__ import annotations

import data_parallel_cases as cases
import pytest
import torch
from parallel_cases import Case, learner_of
from ranks import run_ranks

from hpff.errors import UserError
from hpff.parallel import DataParallel

TRAINED = [("dgl", 2), ("infopro", 3), ("auglocal", 1), ("bp", 1)]


@pytest.mark.long
@pytest.mark.parametrize(("world", "accumulated"), [(2, False), (2, True), (4, False)])
def test_ranks_give_the_weights_of_one_process(
    world: int, accumulated: bool, one_thread: None
) -> None:
    trained = TRAINED[:1] if accumulated or world == 4 else TRAINED
    found = run_ranks(world, cases.data_by_ranks, trained, accumulated)
    for rank, each in enumerate(found):
        assert not isinstance(each, str), each
        for (method, k), (state, reductions) in zip(trained, each, strict=True):
            modules = 1 if method == "bp" else 6
            assert reductions == 3 * modules, "accumulation reduces once a step"
            expected = cases.data_by_one(method, k)
            first = found[0][trained.index((method, k))][0]
            for name, value in expected.items():
                assert torch.equal(state[name], first[name]), f"rank {rank} has weights of its own"
                torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-11)


def test_parameters_that_are_thawed_later_are_averaged(one_thread: None) -> None:
    first, second = run_ranks(2, cases.thawed_later)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_gradients_of_two_types_are_not_rounded(one_thread: None) -> None:
    assert run_ranks(2, cases.averaged_in_two_types) == [[], []]


def test_without_processes_it_says_how_to_start_them() -> None:
    with pytest.raises(UserError, match=r"call torch\.distributed\.init_process_group first"):
        DataParallel(learner_of(Case()))
