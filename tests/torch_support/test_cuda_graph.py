"""Calls that are recorded and replayed, on whatever device there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hpff.errors import UserError
from hpff.torch_support.cuda_graph import Replayed


class Recorder:
    """Stands in for a CUDA graph: recording runs nothing, a replay runs on the held tensors."""

    def __init__(self) -> None:
        self.replays = 0

    def __call__(self, call: Callable[[], Any]) -> tuple[Any, Callable[[], object]]:
        result = torch.zeros(3)

        def replay() -> None:
            self.replays += 1
            result.copy_(call())

        return result, replay


def test_each_call_is_one_call() -> None:
    recorder, added = Recorder(), torch.zeros(3)
    seen: list[Tensor] = []

    def add(tensor: Tensor) -> Tensor:
        return added.add_(tensor).clone()

    replayed = Replayed(add, recorder)
    for number in range(1, 8):
        seen.append(replayed(torch.full((3,), float(number))).clone())
    expected = [torch.full((3,), number * (number + 1) / 2) for number in range(1, 8)]
    torch.testing.assert_close(seen, expected)
    assert recorder.replays == 4


def test_a_call_of_other_shapes_runs_as_it_is() -> None:
    recorder = Recorder()
    replayed = Replayed(lambda tensor: 2 * tensor, recorder)
    for _ in range(5):
        replayed(torch.ones(3))
    for other in (torch.ones(2), torch.ones(3, dtype=torch.float64), torch.ones(6)[::2]):
        torch.testing.assert_close(replayed(other), 2 * other)
    assert recorder.replays == 2
    torch.testing.assert_close(replayed(torch.full((3,), 2.0)), torch.full((3,), 4.0))
    assert recorder.replays == 3


def test_a_part_of_a_tensor_is_replayed_too() -> None:
    recorder = Recorder()
    replayed = Replayed(lambda tensor: 2 * tensor, recorder)
    for number in range(8):
        part = torch.full((6,), float(number))[::2]
        torch.testing.assert_close(replayed(part), 2 * part)
    assert recorder.replays == 5


def test_what_comes_once_in_a_while_is_not_recorded() -> None:
    """A last, smaller batch."""
    recorder = Recorder()
    replayed = Replayed(lambda tensor: tensor.sum().expand(3), recorder)
    for _ in range(4):
        for size in (8, 8, 5):
            batch = torch.rand(size)
            torch.testing.assert_close(replayed(batch), batch.sum().expand(3))
    assert recorder.replays == 4 * 2 - 3


def test_on_the_cpu_each_call_runs_as_it_is() -> None:
    calls: list[Tensor] = []
    replayed = Replayed(calls.append)
    for number in range(6):
        replayed(torch.tensor(number, device="cpu"))
    assert [int(tensor) for tensor in calls] == list(range(6))
    assert Replayed(lambda: 3)() == 3


def test_what_cannot_be_recorded_says_so() -> None:
    def record(call: Callable[[], Any]) -> Any:
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    replayed = Replayed(lambda tensor: tensor, record)
    for _ in range(3):
        replayed(torch.ones(1))
    with pytest.raises(
        UserError, match=r"\(operation not permitted .* capturing\); run it without"
    ):
        replayed(torch.ones(1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_each_replay_draws_by_the_seed_it_is_given() -> None:
    replayed = Replayed(lambda tensor: torch.nn.functional.dropout(tensor) + 0)
    drawn = []
    for seed in (0, 0, 0, 1, 2, 1, 2):
        torch.manual_seed(seed)
        drawn.append(replayed(torch.ones(1000, device="cuda")).clone())
    assert not torch.equal(drawn[3], drawn[4])
    assert torch.equal(drawn[3], drawn[5])
    assert torch.equal(drawn[4], drawn[6])
