"""Modules on several real processes: the same bits as one process, and refusals that say why."""

from __future__ import annotations

from types import SimpleNamespace

import parallel_cases as cases
import pytest
import torch
from parallel_cases import Case, by_one, by_ranks
from ranks import run_ranks

from hpff import LocalLearner, models
from hpff.cutting.part import Parts
from hpff.errors import UserError
from hpff.parallel import ModuleParallel
from hpff.parallel.sent_batches import SentBatches

HILO = {"cascade": 2}
ON_TWO = [
    Case({"cascade": 1, "patches": 1}),
    Case({"cascade": 2, "patches": 2}, optimizer="adamw"),
    Case({"cascade": 3}, sizes=(1, 5), optimizer="rmsprop"),
    Case({"cascade": 2, "independent": False}, sizes=(5, 1)),
    Case({"cascade": 6, "independent": False, "patches": 1}, sizes=(3, 3)),
    Case({"method": "predsim"} | HILO),
    Case({"method": "infopro"} | HILO),
    Case({"method": "auglocal", "cascade": 1}),
    Case({"cascade": 2, "recompute": "blocks"}),
    Case({"cascade": 3, "recompute": "once"}),
    Case({"cascade": (1, 2, 1, 3, 1, 2)}),
    Case(HILO, model="tokens"),
    Case(HILO, model="channels-last"),
    Case(HILO, model="shared"),
    Case({"cascade": 3}, steps=4, accumulated=True),
    Case({"method": "infopro"} | HILO, sent=True),
    Case(HILO, model="tokens", sent=True),
    Case(HILO, model="channels-last", sent=True),
]
ON_THREE = [
    Case({"cascade": 1}),
    Case({"cascade": 2}, sizes=(1, 4, 1)),
    Case({"cascade": 4}, sizes=(3, 1, 2)),
    Case({"cascade": 4}, sizes=(3, 1, 2), steps=6, sent=True),
    Case({"cascade": 5, "independent": False}, sizes=(2, 2, 2), optimizer="adamw"),
]
ON_FOUR = [Case({"cascade": 6}, sizes=(2, 1, 1, 2)), Case({"method": "predsim"} | HILO)]


@pytest.mark.long
@pytest.mark.parametrize(
    ("world", "trained"), [(1, [Case(HILO)]), (2, ON_TWO), (3, ON_THREE), (4, ON_FOUR)]
)
def test_ranks_give_the_bits_of_one_process(
    world: int, trained: list[Case], one_thread: None
) -> None:
    found = run_ranks(world, by_ranks, trained)
    for each in found:
        assert not isinstance(each, str), each
    for case, (state, _), (_, losses) in zip(trained, found[0], found[-1], strict=True):
        expected, final = by_one(case)
        assert losses == final, case
        assert list(state) == list(expected)
        different = [name for name in expected if not torch.equal(state[name], expected[name])]
        assert different == [], case


def test_batches_that_only_the_first_rank_has_give_the_same_bits(one_thread: None) -> None:
    sent = [Case({"cascade": k}, steps=6, sent=True) for k in (1, 3)]
    first, last = run_ranks(2, by_ranks, sent)
    for case, (state, _), (_, losses) in zip(sent, first, last, strict=True):
        expected, final = by_one(case)
        assert losses == final
        assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_a_loader_may_reuse_what_it_gave_before_it_has_arrived() -> None:
    sent: list[torch.Tensor] = []
    connections = SimpleNamespace(send_batch=sent.extend)
    images, targets = torch.ones(2, 3), torch.ones(2)
    SentBatches(connections, images, is_first=True).take(images, targets)
    for tensor in (images, targets):
        tensor.zero_()
    assert [tensor.sum().item() for tensor in sent] == [6, 2]


def test_a_batch_on_two_ranks_is_refused_where_it_is_to_be_sent() -> None:
    found = run_ranks(2, cases.sent_wrongly)
    assert "batches are sent by the first rank, which alone is given inputs" in found[1]


def test_a_slow_rank_changes_no_bit(one_thread: None) -> None:
    for k in (1, 2):
        case = Case({"cascade": k}, steps=5)
        (state, _), (_, losses) = run_ranks(2, cases.by_a_slow_rank, case)
        expected, final = by_one(case)
        assert losses == final
        assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_weights_loaded_between_steps_stay_as_they_are(one_thread: None) -> None:
    assert run_ranks(2, cases.loaded_in_training) == [[], []]


def test_a_trained_network_is_evaluated_where_it_lies(one_thread: None) -> None:
    first, second = run_ranks(2, cases.evaluated)
    assert first is None
    learner = cases.learner_of(Case())
    with torch.no_grad():
        expected = learner.eval()(cases.batches(Case())[0][0])
    assert torch.equal(second, expected)


def test_a_batch_that_is_sent_is_evaluated(one_thread: None) -> None:
    first, second = run_ranks(2, cases.sent_to_evaluate)
    assert first is None
    with torch.no_grad():
        expected = cases.learner_of(Case()).eval()(cases.batches(Case())[0][0])
    assert torch.equal(second, expected)


def test_a_rank_holds_only_its_own_modules(one_thread: None) -> None:
    held = run_ranks(2, cases.held_bytes)
    learner = cases.learner_of(Case(), channels=32)
    whole = sum(p.nbytes for p in learner.parameters())
    assert all(0.3 * whole < each < 0.7 * whole for each in held)
    assert whole < sum(held) < 1.01 * whole


def test_different_learners_are_refused() -> None:
    found = run_ranks(2, cases.different_learners)
    assert all("ranks have different learners: those of rank 1" in each for each in found)


def test_what_two_ranks_would_share_is_refused() -> None:
    found = run_ranks(2, cases.tied)
    assert all("blocks.0.conv.weight is shared by modules 1, 6" in each for each in found)


def test_a_rank_that_is_gone_is_named() -> None:
    found = run_ranks(2, cases.gone)
    assert "rank 1 is gone" in found[0]


def test_a_rank_that_is_silent_is_named() -> None:
    found = run_ranks(2, cases.silent)
    assert "rank 0 has sent nothing for 1 s (the output of module 3 is due)" in found[1]


def test_a_rank_that_does_not_come_to_its_end_is_named() -> None:
    found = run_ranks(2, cases.never_closes)
    assert "rank 0 has not come to its end for 1 s" in found[1]


def test_a_model_that_cannot_run_in_parts_is_refused() -> None:
    learner = cases.learner_of(Case(), model=cases.Remembers())
    parts = Parts(learner.model, learner.partition, learner.example)
    parts.part(1, 3)
    with pytest.raises(UserError, match="modules 4-6 of this model cannot run alone"):
        parts.part(4, 6)


def test_trying_out_a_part_leaves_no_trace() -> None:
    learner = cases.learner_of(Case())
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    state = torch.get_rng_state()
    Parts(learner.model, learner.partition, learner.example).part(3, 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[n]) for n, value in learner.state_dict().items())
    assert not any(m._forward_hooks or "forward" in vars(m) for m in learner.modules())


def test_a_segmentation_is_refused() -> None:
    learner = LocalLearner(
        models.create("fcn_resnet20", num_classes=3, width=4),
        modules=3,
        example=torch.zeros(2, 3, 32, 32),
        num_classes=3,
        task="segmentation",
    )
    with pytest.raises(UserError, match="is for classification so far"):
        ModuleParallel(learner)


def test_a_method_that_follows_other_ranks_blocks_is_refused() -> None:
    with pytest.raises(UserError, match=r"man's networks follow .* use parallel=data"):
        ModuleParallel(cases.learner_of(Case({"method": "man"})))


def test_several_streams_are_refused() -> None:
    with pytest.raises(UserError, match="streams: is 2, expected 1 where several processes train"):
        ModuleParallel(cases.learner_of(Case({"streams": 2})))


def test_without_processes_it_says_how_to_start_them() -> None:
    with pytest.raises(UserError, match=r"call torch\.distributed\.init_process_group first"):
        ModuleParallel(cases.learner_of(Case()))


@pytest.mark.parametrize("sizes", [(1, 2), (0, 6), (2, 2, 2)])
def test_sizes_that_do_not_fit_are_refused(sizes: tuple[int, ...]) -> None:
    from hpff.parallel.groups import groups_of

    learner = cases.learner_of(Case())
    with pytest.raises(UserError, match="add up to 6 modules"):
        groups_of(learner.partition, 2, sizes)
