"""What is planned of each rank is what its steps take, counted on real tensors and processes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import parallel_cases as cases
import pytest
import torch
from ranks import run_ranks
from torch import Tensor

from hpff.cutting.part import Parts
from hpff.errors import UserError
from hpff.memory import AllocationCounter, Strategy, Workload
from hpff.parallel.ownership import Ownership
from hpff.parallel.planning import RanksPlan, plan_ranks
from hpff.parallel.rank_steps import RankSteps

BATCH = 8
CASES = [("dgl", 1, (4, 2)), ("infopro", 4, (2, 2, 2))]


def planned(method: str, k: int, ranks: int) -> RanksPlan:
    workload = Workload(
        lambda: cases.Chain(channels=16), 6, image=(3, 8, 8), num_classes=cases.CLASSES
    )
    strategy = Strategy.of(method, cascade=k, patches=2)
    return plan_ranks(workload, batch=BATCH, strategy=strategy, ranks=ranks)


@dataclass
class Mailbox:
    """Ranks that are all in this process: what one sends lies here until another takes it."""

    counter: AllocationCounter
    outputs: deque[Tensor] = field(default_factory=deque)
    gradients: deque[Tensor] = field(default_factory=deque)
    sent_on: list[Tensor] = field(default_factory=list)
    sent_back: list[Tensor] = field(default_factory=list)

    def receive_output(self) -> Tensor:
        return self._tracked(self.outputs.popleft())

    def receive_gradient(self, end: int) -> Tensor:
        return self._tracked(self.gradients.popleft())

    def send_output(self, output: Tensor) -> None:
        with self.counter.looking_away():
            self.sent_on.append(output.clone())

    def send_gradient(self, end: int, gradient: Tensor) -> None:
        with self.counter.looking_away():
            self.sent_back.append(gradient.clone())

    def _tracked(self, tensor: Tensor) -> Tensor:
        self.counter.track([tensor])
        return tensor


def counted_here(
    method: str, k: int, sizes: tuple[int, ...], rank: int, begins: list[Tensor]
) -> tuple[int, Mailbox]:
    """What a rank's second step takes on real tensors, and what it sends in two steps."""
    case = cases.Case({"method": method, "cascade": k, "patches": 2})
    learner = cases.learner_of(case, channels=16)
    first = sum(sizes[:rank]) + 1
    last = first + sizes[rank] - 1
    parts = Parts(learner.model, learner.partition, learner.example)
    part, owners = parts.part(first, last), Ownership(learner, parts.buffer_modules())
    owners.keep(first, last, torch.device("cpu"))
    optimizers = cases.warm_optimizers(learner, first, last)

    def done(j: int) -> None:
        optimizers[j].step()
        optimizers[j].zero_grad()

    counter = AllocationCounter()
    box = Mailbox(counter, deque(begins))
    steps = RankSteps(learner, part, owners.waits_for(), box)
    with counter:
        cases.track_standing(counter, learner, optimizers)
        for number in (1, 2):
            images = torch.rand(BATCH, 3, 8, 8)
            targets = torch.zeros(BATCH, dtype=torch.int64)
            counter.peak = counter.current
            ends = learner.reach.crossing(last)
            if number == 2 and ends:
                with counter.looking_away():
                    box.gradients.extend(torch.rand_like(box.sent_on[-1]) for _ in ends)
            steps.run(images, targets, scale=1.0, seed=1, on_module_done=done)
        peak = counter.peak
        with counter.looking_away():
            box.gradients.extend(torch.rand_like(box.sent_on[-1]) for _ in ends)
        steps.finish()
    return peak, box


@pytest.mark.parametrize(("method", "k", "sizes"), CASES)
def test_a_ranks_plan_is_what_its_steps_take(
    method: str, k: int, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpff.parallel.planning.groups_of", lambda *_, **__: list(sizes))
    plan = planned(method, k, len(sizes))
    begins: list[Tensor] = []
    for rank, row in enumerate(plan.rows):
        peak, box = counted_here(method, k, sizes, rank, begins)
        assert row.peak == peak, rank
        assert row.peak == sum(size for _, size in row.alive)
        assert row.sends_on == sum(t.nbytes for t in box.sent_on) // 2
        assert row.sends_back == sum(t.nbytes for t in box.sent_back) // 2
        begins = box.sent_on


def test_real_processes_take_what_is_planned_and_the_messages_that_wait(one_thread: None) -> None:
    plan = planned("dgl", 2, 2)
    sizes = [row.last - row.first + 1 for row in plan.rows]
    found = run_ranks(2, cases.counted_peak, sizes, BATCH)
    for row, peak in zip(plan.rows, found, strict=True):
        assert row.peak <= peak <= row.peak + row.waiting
    assert 1.3 < plan.speedup <= 2


@pytest.mark.parametrize(
    ("method", "ranks", "words"),
    [
        ("bp", 2, "backprop has one module"),
        ("dgl", 1, "ranks is 1; expected 2 or more"),
        ("dgl", 7, "7 ranks for 6 modules"),
        ("man", 2, "use parallel=data, or another method"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(method: str, ranks: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        planned(method, 1, ranks)
