"""Modules shared out in rows of real processes, gradients averaged over the rows."""

from __future__ import annotations

from typing import Any

import data_parallel_cases
import grid_cases as cases
import pytest
import synchronized_cases as synchronized
import torch
from parallel_cases import Case, optimizers_of
from ranks import run_ranks

from hpff.parallel.grid import is_grid

TRAINED = [
    ("dgl", 1, (3, 3), False),
    ("dgl", 2, (3, 3), False),
    ("dgl", 3, (1, 5), False),
    ("infopro", 2, (4, 2), False),
    ("infopro", 3, (3, 3), False),
    ("dgl", 2, (2, 4), True),
]


def check(found: list[Any], trained: list[cases.Trained], columns: int) -> None:
    """Every training gave the weights of one process, and every row the same."""
    for each in found:
        assert not isinstance(each, str), each
    for number, (method, k, sizes, _) in enumerate(trained):
        state, _, _ = found[0][number]
        expected = data_parallel_cases.data_by_one(method, k)
        assert list(state) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-11)
        for rank, each in enumerate(found):
            whole, own, stepped = each[number]
            assert rank == 0 or whole is None
            assert len(stepped) == 3 * sizes[rank % columns], "a module steps once a batch"
            pairs = zip(own, found[rank % columns][number][1], strict=True)
            assert all(torch.equal(a, b) for a, b in pairs), f"rank {rank} has weights of its own"


@pytest.mark.long
def test_a_grid_gives_the_weights_of_one_process_and_of_data_parallel(one_thread: None) -> None:
    found = run_ranks(4, cases.by_grid, 2, TRAINED)
    check(found, TRAINED, columns=2)
    by_data = run_ranks(2, data_parallel_cases.data_by_ranks, [("dgl", 2), ("infopro", 3)], False)
    for number, (state, _) in zip((1, 4), by_data[0], strict=True):
        for name, value in state.items():
            torch.testing.assert_close(found[0][number][0][name], value, rtol=1e-9, atol=1e-11)


NORMALIZED = [
    synchronized.Case({"cascade": 1}),
    synchronized.Case({"cascade": 2, "patches": 2}),
    synchronized.Case({"cascade": 3, "recompute": "blocks"}),
    synchronized.Case({"method": "infopro", "cascade": 2}, steps=3),
]


def test_a_grid_normalizes_by_the_whole_batch(one_thread: None) -> None:
    """Unequal shares, statistics included; one process takes the same steps of each module."""
    found = run_ranks(4, cases.by_grid_with_batch_norm, NORMALIZED)
    for each in found:
        assert not isinstance(each, str), each
    for number, case in enumerate(NORMALIZED):
        learner = synchronized.learner_of(case)
        optimizers = optimizers_of(Case(), dict(enumerate(learner.module_parameters, start=1)))
        for images, targets in synchronized.batches(case):
            learner.backward(images, targets)
            for optimizer in optimizers.values():
                optimizer.step()
                optimizer.zero_grad()
        state = found[0][number][0]
        assert list(state) == list(learner.state_dict())
        for name, value in learner.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-11, msg=name)
        for first, second in (found[0::2], found[1::2]):
            pairs = zip(first[number][1], second[number][1], strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


def test_a_single_row_has_no_batch_to_put_together() -> None:
    for said in run_ranks(2, cases.batch_norm_of_one_row):
        assert said.startswith("UserError: batch_norm is 'synchronized', but without replicas")


@pytest.mark.long
def test_three_rows_of_one_rank(one_thread: None) -> None:
    """Replicas alone; a batch of 8 is in shares of 3, 3 and 2, so it is not that of one."""
    trained = [("dgl", 2, (6,), False)]
    found = run_ranks(3, cases.by_grid, 3, trained)
    for each in found:
        assert not isinstance(each, str), each
        assert all(torch.equal(a, b) for a, b in zip(each[0][1], found[0][0][1], strict=True))
        assert sorted(each[0][2]) == sorted([1, 2, 3, 4, 5, 6] * 3)


@pytest.mark.long
def test_rows_stay_together_with_dropout_statistics_and_shared_weights(one_thread: None) -> None:
    found = run_ranks(4, cases.with_shared_weights_and_statistics)
    for first, second in (found[0::2], found[1::2]):
        before = [torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True)]
        after = [torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True)]
        assert not all(before), "each row has seen other images"
        assert all(after)


def test_rows_draw_random_numbers_of_their_own(one_thread: None) -> None:
    found = run_ranks(4, cases.zeros_dropped)
    assert found[0] != found[2]
    assert found[1] != found[3]


def test_gradients_leave_while_the_rank_computes(one_thread: None) -> None:
    """Modules' messages go before the next module is done; none is left for the step's end."""
    for rank, events in enumerate(run_ranks(4, cases.order_of_messages)):
        a, b, c = (4, 5, 6) if rank % 2 else (1, 2, 3)
        step = [a, [a], b, [b], c, [c]]
        assert events == [step, step, []], rank


def test_data_parallel_in_groups(one_thread: None) -> None:
    found = run_ranks(4, cases.by_data_in_pairs)
    same = [all(map(torch.equal, found[0], each)) for each in found]
    assert same == [True, True, False, False]
    assert all(map(torch.equal, found[2], found[3]))


def test_what_is_no_grid_is_refused() -> None:
    for said in run_ranks(4, cases.no_grid):
        assert "UserError: group and replicas are no grid" in said
        assert "\n" not in said


def test_rows_of_different_learners_are_refused() -> None:
    for said in run_ranks(4, cases.different_rows):
        assert "ranks have different learners: those of rank 2, 3 are not those of rank 0" in said


def test_a_rank_that_is_gone_leaves_no_other_waiting() -> None:
    found = run_ranks(4, cases.gone)
    assert "rank 3 is gone" in found[2]
    assert found[3] == "killed"
    assert all(isinstance(each, str) for each in found)


@pytest.mark.parametrize(
    ("rows", "columns", "good"),
    [
        ([[0, 1], [0, 1], [2, 3], [2, 3]], [[0, 2], [1, 3], [0, 2], [1, 3]], True),
        ([[0, 1], [0, 1], [2, 3], [2, 3]], [[0], [1], [2], [3]], True),
        ([[0, 1], [0, 1], [2, 3], [2, 3]], [[0, 1], [0, 1], [2, 3], [2, 3]], False),
        ([[0, 1, 2], [0, 1, 2], [0, 1, 2], [3]], [[0, 3], [1], [2], [0, 3]], False),
        ([[0, 1], [1, 0]], [[0], [1]], False),
    ],
)
def test_what_makes_a_grid(rows: list[list[int]], columns: list[list[int]], good: bool) -> None:
    assert is_grid(rows, columns) == good
