"""Modules' work on several streams: ordered as its reads and writes need, on simulated streams."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from simulated_streams import simulated
from torch import Tensor, nn

import hpff
from hpff import LocalLearner
from hpff.engine import schedule
from hpff.engine.reach import Reach
from hpff.engine.streams import SeveralStreams, turns_of
from hpff.errors import UserError
from hpff.memory import Strategy, Workload, plan
from hpff.memory.rehearsal import Rehearsal
from hpff.methods.dgl import DGL


class Beside(nn.Module):
    """Its input's gradient is its output's: the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.convolution(x.detach())
        return output


def network(blocks: int = 7, beside: bool = False) -> nn.Sequential:
    parts: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(3 if j == 0 else 4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        for j in range(blocks)
    ]
    if beside:
        parts[2:6] = [Beside() for _ in range(4)]
    return nn.Sequential(*parts, nn.Sequential(nn.Flatten(), nn.Linear(4 * 8 * 8, 5)))


def gradients(learner: LocalLearner, steps: int = 2) -> list[Tensor]:
    """Those of some steps, each taken from the weights of the one before by plain SGD."""
    generator = torch.Generator().manual_seed(3)
    found: list[Tensor] = []
    for _ in range(steps):
        images = torch.randn(4, 3, 8, 8, generator=generator)
        learner.backward(images, torch.tensor([0, 1, 2, 4]))
        for parameter in learner.parameters():
            if parameter.grad is not None:
                found.append(parameter.grad.clone())
                parameter.data.sub_(parameter.grad, alpha=0.1)
        learner.zero_grad()
    return found


def learner_with(streams: int, beside: bool = False, **given: Any) -> LocalLearner:
    torch.manual_seed(0)
    example = torch.zeros(2, 3, 8, 8)
    model = network(beside=beside)
    return LocalLearner(model, example=example, num_classes=5, streams=streams, **given)


DEEP = (1, 2, 1, 4, 2, 6, 1, 3)
WAYS = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["dgl", "auglocal", "man", "predsim", "infopro"]),
        "cascade": st.sampled_from([1, 2, 3, 5, DEEP]),
        "independent": st.booleans(),
        "patches": st.sampled_from([1, 2]),
        "patch_mode": st.sampled_from(["auto", "one-by-one"]),
        "auxiliary_pool": st.sampled_from([1, 2]),
        "auxiliary_width": st.sampled_from([None, 3]),
        "recompute": st.sampled_from(["never", "once", "blocks"]),
        "recompute_budget": st.sampled_from([1, 1.3, 2, 9]),
    }
).filter(
    lambda way: (
        (way["independent"] or way["cascade"] != 1)
        and (way["method"] != "man" or way["auxiliary_width"] is None)  # refused
        and (way["recompute"] == "blocks" or way["recompute_budget"] == 1)
    )
)


@settings(max_examples=12, deadline=None)
@given(streams=st.integers(2, 6), way=WAYS)
@example(2, {"method": "dgl", "cascade": DEEP, "independent": False, "recompute": "blocks"})
@example(2, {"cascade": DEEP, "recompute": "blocks", "recompute_budget": 1.5})
@example(3, {"method": "dgl", "cascade": 5, "beside": True})
def test_what_a_stream_reads_is_there_and_stays(streams: int, way: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch, simulated(patch) as races:
        several = gradients(learner_with(streams, **way))
    assert races.found == []
    assert 2 <= len(races.streams) <= streams + 1
    one = gradients(learner_with(1, **way))
    assert len(several) == len(one)
    assert all(map(torch.equal, several, one))


def test_modules_work_in_turns_that_end_with_a_loss() -> None:
    sliding, striding = Reach.uniform(8, 2), Reach.uniform(8, 4, stride=3)
    assert turns_of(sliding, independent=False) == (0, 0, 0, 1, 2, 3, 4, 5, 6)
    assert turns_of(sliding, independent=True) == (0, 0, 1, 2, 3, 4, 5, 6, 7)
    assert striding.lengths == (1, 1, 1, 4, 1, 1, 4, 4)
    assert turns_of(striding, independent=False) == (0, 0, 0, 0, 0, 1, 1, 1, 2)


class Dropped(nn.Module):
    """Runs on the example, and then gives its input back, as stochastic depth may."""

    def __init__(self, *, viewed: bool = True) -> None:
        super().__init__()
        self.block = nn.Conv2d(4, 4, 3, padding=1)
        self.runs = 0
        self.viewed = viewed

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        if self.runs > 1:
            return x.view_as(x) if self.viewed else x
        output: Tensor = self.block(x)
        return output


@pytest.mark.parametrize("streams", [2, 3, 4])
def test_memory_that_goes_through_a_dropped_block_stays(
    monkeypatch: pytest.MonkeyPatch, streams: int
) -> None:
    """Module 8 gives out module 7's memory, on which module 9, of the same turn, works longer."""
    ends = {4: 4, 7: 3, 10: 3, 13: 5, 16: 3, 17: 2}
    model = network(16)
    model[7] = Dropped()
    with simulated(monkeypatch) as races:
        learner = LocalLearner(
            model,
            modules=[str(number) for number in range(16)],
            example=torch.zeros(2, 3, 8, 8),
            num_classes=5,
            cascade=tuple(ends.get(j, 1) for j in range(1, 18)),
            independent=False,
            patches=1,
            streams=streams,
        )
        gradients(learner, steps=1)
    assert races.found == []


@pytest.mark.parametrize("streams", [2, 4])
def test_a_backward_is_launched_where_its_forward_was(
    monkeypatch: pytest.MonkeyPatch, streams: int
) -> None:
    """As autograd runs each backward on its forward's stream, whatever stream is there."""
    launched: dict[int, set[Any]] = {}
    enter, vjp = schedule.Step._enter, schedule._LiveModule._vjp

    def entered(step: Any, *given: Any) -> Any:
        module = enter(step, *given)
        launched[module.index] = {races.device.current()}
        return module

    def differentiated(module: Any, *given: Any, **named: Any) -> None:
        launched[module.index].add(races.device.current())
        vjp(module, *given, **named)

    monkeypatch.setattr(schedule.Step, "_enter", entered)
    monkeypatch.setattr(schedule._LiveModule, "_vjp", differentiated)
    with simulated(monkeypatch) as races:
        gradients(learner_with(streams, cascade=3), steps=1)
    assert [len(launched[j]) for j in range(1, 9)] == [1] * 8
    assert len(set.union(*launched.values())) == streams + 1


def test_a_forward_does_not_wait_for_the_local_work_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unfinished: list[int] = []
    forward = SeveralStreams.forward

    def began(streams: Any, j: int) -> None:
        before = streams._machine.current()
        forward(streams, j)
        here = streams._machine.current()
        unfinished.append(before.clock[before] - here.clock[before])

    monkeypatch.setattr(SeveralStreams, "forward", began)
    with simulated(monkeypatch):
        gradients(learner_with(4, cascade=2), steps=1)
    assert len(unfinished) == 7
    assert min(unfinished) > 20


@pytest.mark.parametrize("forgotten", ["lend", "ready", "follow"])
def test_a_race_is_noticed(monkeypatch: pytest.MonkeyPatch, forgotten: str) -> None:
    """The check of this file finds what each part of the streams is there for."""

    def wrong(streams: Any, j: int) -> None:
        streams._switch(streams._of(j), None)

    instead = {"lend": lambda *_: None, "ready": lambda *_: None, "follow": wrong}
    monkeypatch.setattr(SeveralStreams, forgotten, instead[forgotten])
    with simulated(monkeypatch) as races:
        gradients(learner_with(3, cascade=2))
    assert races.found


def test_a_step_that_fails_ends_on_the_stream_that_was_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with simulated(monkeypatch) as races:
        learner = learner_with(3)
        block = learner.model.get_submodule("4")
        handle = block.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            gradients(learner)
        assert races.device.current() == races.device.main
        handle.remove()
        learner.zero_grad()
        gradients(learner)
        assert races.found == []

        def breaks(*_: Any) -> None:
            races.device.broken = True

        block.register_forward_pre_hook(breaks)
        with pytest.raises(RuntimeError, match="the recording has failed"):
            gradients(learner)
        assert races.device.current() == races.device.main
        assert races.device.left == 4


def test_modules_on_several_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with simulated(monkeypatch) as races:
        races.device.elsewhere = True
        with pytest.raises(UserError, match="lies on cpu, and others on another device; use"):
            gradients(learner_with(2))


class Masked(nn.Module):
    """A mask that the first block, or a later one, makes is read by all after it."""

    def __init__(self, made_in: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.head = nn.Linear(6, 5)
        self.made_in = made_in

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(())
        for number, block in enumerate(self.blocks, start=1):
            if number == self.made_in:
                mask = (x.detach() > 0).float()
            x = block(x) * mask if number > self.made_in else block(x)
        logits: Tensor = self.head(x)
        return logits


def test_what_the_first_module_makes_may_be_read_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with simulated(monkeypatch) as races:
        learner = LocalLearner(
            Masked(1), modules=4, example=torch.randn(2, 6), num_classes=5, streams=2, patches=1
        )
        for _ in range(2):
            learner.backward(torch.randn(4, 6), torch.tensor([0, 1, 2, 3]))
    assert races.found == []


class OneHead(DGL):
    """A method whose modules all have the same auxiliary network."""

    shared: nn.Module | None = None

    def auxiliary(self, context: Any) -> nn.Module:
        self.shared = self.shared or super().auxiliary(context)
        return self.shared


class Skipping(Masked):
    """The second block's output is read by the last one, too, without a gradient."""

    def __init__(self) -> None:
        super().__init__(9)

    def forward(self, x: Tensor) -> Tensor:
        second = x = self.blocks[1](self.blocks[0](x))
        x = self.blocks[3](self.blocks[2](x)) + second.detach()
        logits: Tensor = self.head(x)
        return logits


class Tempered(nn.Module):
    """A criterion with a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits / self.temperature, targets)


def test_what_is_refused() -> None:
    example = torch.randn(2, 6)
    with pytest.raises(UserError, match="next read what module 2 computes"):
        LocalLearner(Masked(2), modules=4, example=example, num_classes=5, streams=2)
    tied = Masked(9)
    tied.blocks[3] = tied.blocks[1]
    with pytest.raises(UserError, match=r"several modules use the parameter 'blocks.1.bias'"):
        LocalLearner(
            tied, modules=["blocks.0", "blocks.2"], example=example, num_classes=5, streams=2
        )
    with pytest.raises(UserError, match="next read what module 2 computes"):
        LocalLearner(Skipping(), modules=4, example=example, num_classes=5, streams=2)
    with pytest.raises(UserError, match="several modules use the parameter of auxiliary networks"):
        learner_with(2, method=OneHead())
    with pytest.raises(UserError, match="the criterion learns, and all modules use it"):
        learner_with(2, criterion=Tempered())
    assert learner_with(2, criterion=nn.CrossEntropyLoss(weight=torch.ones(5)))
    with pytest.raises(UserError, match=r"mode 'reduce-overhead' .* use cuda_graph"):
        learner_with(2).compile(mode="reduce-overhead")
    with pytest.raises(UserError, match="streams: is 2 with recompute repeatedly"):
        hpff.LocalSettings(streams=2, recompute="repeatedly")
    with pytest.raises(UserError, match="streams: is 0, expected"):
        hpff.LocalSettings(streams=0)


@pytest.mark.parametrize(("streams", "cascade"), [(2, 1), (3, 2), (4, 3)])
def test_a_plan_counts_what_each_stream_holds(
    monkeypatch: pytest.MonkeyPatch, streams: int, cascade: int
) -> None:
    given = {"streams": streams, "cascade": cascade, "patches": 2}
    workload = Workload(network, 8, image=(3, 8, 8), num_classes=5, optimizer="plain-sgd")
    planned = Rehearsal(workload, Strategy.of("dgl", **given)).run(4)
    alone = Rehearsal(workload, Strategy.of("dgl", **{**given, "streams": 1})).run(4)
    with simulated(monkeypatch) as races:
        gradients(learner_with(**given), steps=1)
    others = [races.most[stream] for stream in races.device.create(streams, races.device.main)]
    peaks = planned.peaks_of_streams()
    assert [peaks[number] for number in range(1, streams + 1)] == others
    assert planned.peak == sum(peaks.values()) == sum(planned.at_peak().values())
    assert planned.peak > alone.peak


def test_the_largest_batch_is_one_whose_streams_fit() -> None:
    workload = Workload(network, 8, image=(3, 8, 8), num_classes=5)
    strategy, budget = Strategy.of("dgl", 2, streams=3), 1 << 20
    row = plan(workload, batch=16, budget=budget, strategies=[strategy]).rows[0]
    assert row.largest_batch is not None
    peak = Rehearsal(workload, strategy).peak
    assert peak(row.largest_batch) <= budget < peak(row.largest_batch + 1)


@pytest.mark.parametrize("cascade", [1, 2])
@pytest.mark.parametrize("recompute", ["never", "blocks"])
def test_a_block_may_give_out_its_very_input(cascade: int, recompute: Any) -> None:
    """With one stream, where the input's content is taken as soon as its module is done."""
    model = network(6)
    model[3] = Dropped(viewed=False)
    given = {"patches": 1, "independent": True, "cascade": cascade, "recompute": recompute}
    modules = [str(number) for number in range(6)]
    example = torch.zeros(2, 3, 8, 8)
    learner = LocalLearner(model, modules=modules, example=example, num_classes=5, **given)
    losses = learner.backward(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))
    assert torch.stack(losses.independent).isfinite().all()


def test_what_streams_hold_does_not_grow_with_depth() -> None:
    strategy = Strategy.of("dgl", 2, streams=3)
    held = []
    for blocks in (12, 24):
        made = partial(network, blocks)
        workload = Workload(made, image=(3, 8, 8), num_classes=5, optimizer="plain-sgd")
        peaks = Rehearsal(workload, strategy).run(256).peaks_of_streams()
        held.append([peaks[number] for number in (1, 2, 3)])
    output = 256 * 4 * 8 * 8 * 4
    assert all(deep - shallow < output / 2 for shallow, deep in zip(*held, strict=True))
    assert min(held[0]) > 3 * output
