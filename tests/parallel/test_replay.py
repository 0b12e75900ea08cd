"""Ranks that wait for none: what their buffers give, and what holds of the weights."""

from __future__ import annotations

import queue

import pytest
import replay_cases as cases
import torch
from ranks import run_ranks

from hpff.parallel.messages import Message
from hpff.parallel.replay import ReplayBuffer


def fill(buffer: ReplayBuffer, *numbers: int) -> None:
    for number in numbers:
        for _ in range(2):
            buffer.put(Message(torch.tensor(number), number, torch.empty(0)))


def taken(buffer: ReplayBuffer) -> tuple[int, int]:
    entry, lag = buffer.get(0)
    assert [int(tensor) for tensor in entry.tensors] == [entry.number] * 2
    return entry.number, lag


def test_a_buffer_gives_what_was_used_least_the_newest_of_equals() -> None:
    buffer = ReplayBuffer(3, parts=2)
    fill(buffer, 1, 2, 3)
    assert [taken(buffer) for _ in range(4)] == [(3, 0), (2, 1), (1, 2), (3, 0)]
    fill(buffer, 4)  # 1 makes room
    assert [taken(buffer) for _ in range(4)] == [(4, 0), (4, 0), (2, 2), (4, 0)]


def test_a_full_buffer_lets_go_of_the_oldest() -> None:
    buffer = ReplayBuffer(2, parts=2)
    fill(buffer, 1, 2, 3)
    assert [taken(buffer) for _ in range(2)] == [(3, 0), (2, 1)]


def test_a_buffer_waits_for_a_whole_batch_and_says_what_went_wrong() -> None:
    buffer = ReplayBuffer(2, parts=2)
    buffer.put(Message(torch.tensor(1), 1, torch.empty(0)))
    with pytest.raises(queue.Empty):
        buffer.get(0)
    buffer.put(RuntimeError("gone"))
    with pytest.raises(RuntimeError, match="gone"):
        buffer.get(0)


@pytest.mark.long
@pytest.mark.parametrize("slow", [0, 1])
def test_no_rank_waits_and_the_first_ones_weights_are_those_of_one_process(
    slow: int, one_thread: None
) -> None:
    steps = [6, 30 if slow == 0 else 4]
    first, second = run_ranks(2, cases.replayed, slow, steps, 2)
    for each in (first, second):
        assert not isinstance(each, str), each
    expected = cases.first_modules_by_one(first["modules"])
    assert expected
    different = [n for n, value in expected.items() if not torch.equal(first["state"][n], value)]
    assert different == []
    assert sum(second["lags"].values()) == steps[1]
    assert set(second["lags"]) <= {0, 1}, "a buffer of two lags by one at most here"
    assert second["replays"] >= steps[1] - steps[0]
    assert all(loss == loss and loss > 0 for loss in second["losses"])


@pytest.mark.long
def test_a_rank_that_is_done_early_waits_for_the_one_before_it(one_thread: None) -> None:
    assert run_ranks(2, cases.done_early) == [3, 3]


@pytest.mark.long
def test_what_cannot_be_is_refused_and_a_dead_rank_is_named() -> None:
    for each in run_ranks(2, cases.crossed):
        assert "crosses from one rank's modules to another's" in each
    for each in run_ranks(2, cases.asked_to_evaluate):
        assert "cannot evaluate together" in each
    assert "rank 0 is gone" in run_ranks(2, cases.of_a_dead_rank)[1]
