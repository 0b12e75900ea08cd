"""What "blocks" keeps inside modules, and what that leaves in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpff import LocalSettings
from hpff.cutting.local_modules import InnerPoint, LocalModule, OperationKey, Partition, Save
from hpff.engine import anchors
from hpff.engine.anchors import START, kept_inside
from hpff.engine.reach import Reach
from hpff.engine.room import Room, with_room
from hpff.engine.step_peaks import StepPeaks
from hpff.engine.stretches import Stretch, Stretches
from hpff.engine.tried_anchors import sparing_anchors, stretches_of
from hpff.features import Vectors
from hpff.memory import Strategy, Workload
from hpff.memory.rehearsal import Rehearsal, Stage


def save(size: int, *how: Any, **more: Any) -> Save:
    """A value to whose users a gradient of its own size comes."""
    return Save(size, *how, **{"coming": size, **more})


def module(index: int, stretches: list[tuple[int, int]]) -> LocalModule:
    """A module of stretches: bytes that each saves, and those of what it passes on."""
    inner, saved = [], 0
    for number, (size, output) in enumerate(stretches, start=1):
        saved += size
        inner.append(InnerPoint(OperationKey("layer", number), 0, output, saved))
    return LocalModule(
        index=index,
        cut=f"m{index}",
        submodules=(),
        block_shapes=(),
        parameter_names=(),
        parameters=0,
        output_shape=(1,),
        dtype=torch.float32,
        device=torch.device("cpu"),
        features=Vectors(),
        saved=saved,
        output_bytes=stretches[-1][1],
        saves=tuple(save(size) for size, _ in stretches),
        inner=tuple(inner[:-1]),
    )


def test_of_equal_blocks_about_the_square_root_is_kept() -> None:
    """As for backprop with checkpointing: Chen et al., 2016."""
    whole = module(1, [(100, 100)] * 100)
    (kept,) = kept_inside(Partition((whole,)), Reach((1,)), lambda _: 0)
    assert 6 <= len(kept.anchors) <= 15


def test_dear_outputs_are_not_kept_where_cheap_ones_are_near() -> None:
    whole = module(1, [(100, 1000), (100, 1), (100, 1000), (100, 1), (100, 1000), (100, 1)])
    (kept,) = kept_inside(Partition((whole,)), Reach((1,)), lambda _: 0)
    assert {point.output_bytes for point in kept.anchors} <= {1}


def test_of_anchors_for_stretches_of_a_length_the_cheapest_are_kept() -> None:
    """One anchor every four stretches would be enough, and dear."""
    whole = module(1, [(100, 1), (100, 900), (100, 900), (100, 900), (100, 1), (100, 1)])
    (kept,) = kept_inside(Partition((whole,)), Reach((1,)), lambda _: 0)
    assert [anchor.operation.number for anchor in kept.anchors] == [1, 5]


def test_anchors_that_cost_nothing_are_kept_if_they_spare_arithmetic() -> None:
    """The module's output and its gradient set the peak, and an anchor is as large as a save."""
    whole = module(1, [(10, 10), (10, 10), (10, 1000)])
    for spared, anchors_kept in ((0, 0), (7, 2)):
        inner = tuple(replace(point, spared=spared) for point in whole.inner)
        (kept,) = kept_inside(Partition((replace(whole, inner=inner),)), Reach((1,)), lambda _: 0)
        assert len(kept.anchors) == anchors_kept


def test_the_last_stretches_stay_where_another_module_needs_more_anyway() -> None:
    small, large = module(1, [(10, 10)] * 4), module(2, [(1000, 10)] * 4)
    first, second = kept_inside(Partition((small, large)), Reach((1, 1)), lambda _: 0)
    assert first.graph_after == START
    assert second.graph_after != START


def test_ways_to_cut_a_module_come_in_one_order() -> None:
    """Two of them may be as good, and the same must be chosen in every process."""
    whole = module(1, [(100, 1), (100, 1)] * 4 + [(50, 3), (70, 2), (20, 5)])
    ways = [
        (len(way.anchors), [-anchor.saved for anchor in way.anchors])
        for way in stretches_of(whole, 0)
    ]
    assert len(ways) > len({count for count, _ in ways}), "some have as many anchors"
    assert ways == sorted(ways)


def key(number: int) -> OperationKey:
    return OperationKey("layer", number)


REST = [save(10, key(3), work=1)] * 60


def made(*saves: Save) -> Partition:
    """One module without anchors, of what it saves."""
    whole = replace(
        module(1, [(1, 1)]),
        saved=sum(s.size for s in saves),
        saves=saves,
        work=sum(s.work for s in saves),
    )
    return Partition((whole,))


def made_again(*saves: Save, at_losses: int = 0) -> frozenset[OperationKey]:
    (kept,) = kept_inside(made(*saves), Reach((1,)), lambda _: at_losses)
    return kept.made_again


def test_of_the_values_at_the_worst_time_what_takes_no_work_is_made_again() -> None:
    """Of a convolution's output, which BatchNorm keeps, its ReLU's is made again, not the other."""
    wide = save(90, key(1), work=30), save(80, key(2), made_of=(0,))
    assert made_again(*wide, save(100, key(4), made_of=(1,), work=60)) == {key(2)}


def test_of_the_others_what_gives_the_most_bytes_for_its_work_goes_first() -> None:
    wide = save(90, key(1), work=9), save(80, key(2), work=4)
    assert made_again(*wide, save(100, key(4), work=10), *REST) == {key(1), key(2)}
    assert made_again(*wide, save(100, key(4), work=10), *REST[:20]) == {key(2)}


def test_a_chain_of_values_counts_with_all_that_leads_to_each() -> None:
    """By hand: the third is made of the first, which does not wait, by way of the second."""
    saves = (
        save(5, key(1), work=3),
        save(5, key(2), made_of=(0,), work=4),
        save(5, key(3), made_of=(1,), work=5),
        save(5, key(4), made_of=(0, 2), work=7),
    )
    part = Stretch(saves, (0, 1, 2, 3), output=5, around=(0, 0, 0, 0))
    assert replace(part, made_again=frozenset({2})).work_again == 5
    assert replace(part, made_again=frozenset({0, 1, 2})).work_again == 3 + 7 + 12
    assert replace(part, made_again=frozenset({0, 2, 3})).work_again == 3 + 5 + (7 + 5 + 3)


def test_what_was_saved_later_has_gone_by_a_values_turn() -> None:
    """By hand: the first is made of the second, whose turn in the backward comes before."""
    saves = save(5, key(1), made_of=(1,), work=3), save(5, key(2), work=4)
    part = Stretch(saves, (0, 1), output=5, around=(0, 0), made_again=frozenset({0}))
    assert part.work_again == 3 + 4


def test_anchors_are_chosen_with_what_is_made_again_in_mind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def peak_of_backprop() -> int:
        stage = Stage(Workload("resnet110"))
        return Rehearsal(stage, Strategy.of(recompute="blocks")).peak(64)

    with_it_in_mind = peak_of_backprop()
    monkeypatch.setattr(anchors, "_SEARCHED", 0)
    assert with_it_in_mind < 0.99 * peak_of_backprop()


def test_few_anchors_are_tried_where_values_made_again_do_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def peak_of_light() -> int:
        workload = Workload(
            "torchvision/resnet50", modules=6, balance="memory", image=(3, 224, 224)
        )
        light = Strategy(LocalSettings(preset="light", recompute="blocks"))
        return Rehearsal(Stage(workload), light).peak(128)

    with_few = peak_of_light()
    monkeypatch.setattr(anchors, "_fewest", lambda options: [each[-1] for each in options])
    assert with_few < 0.98 * peak_of_light()


def test_a_graph_is_not_kept_where_an_earlier_stretch_would_not_fit_beside_a_later() -> None:
    """By hand: before the anchor 70 would wait beside 3·60 of the last, which are the peak."""
    saves = save(30, key(1), work=1), save(40, key(2), work=1), save(60, key(3), work=1)
    inner = module(1, [(30, 1), (40, 1), (60, 1)])
    whole = replace(inner, saves=saves, work=0)
    (kept,) = kept_inside(Partition((whole,)), Reach((1,)), lambda _: 0)
    assert [anchor.operation for anchor in kept.anchors] == [key(2)]
    assert kept.graph_after == key(2)


def test_what_was_made_elsewhere_or_is_small_stays() -> None:
    def leaner(first: Save) -> Stretch | None:
        return Stretch((first, save(100, key(4))), (0, 1), output=1, around=(0, 0)).leaner()

    assert leaner(save(90, None)) is None
    assert leaner(save(3, key(1))) is None
    assert leaner(save(4, key(1))) is not None


def test_a_carry_has_anchors_and_output_there_and_what_bypasses_a_stretch() -> None:
    """By hand: three gradients or values of the size of what goes, and what is saved before it."""
    end = replace(module(1, [(10, 5), (20, 7)]), saves=(save(10), save(20)))
    whole = Stretches.whole(end, 0).cut_at(end.inner)
    assert whole.kept == 5 + 7
    assert (whole.carry, whole.last) == (5 + 7 + 3 * 20, 7 + 5 + 3 * 20)
    assert Stretches.whole(end, 100).cut_at(end.inner).carry == 5 + 7 + 100 + 3 * 10
    assert Stretches.whole(end, 100).cut_at(end.inner).last == whole.last, (
        "its input needs no gradient"
    )


@pytest.mark.parametrize(("coming", "worst"), [(10, 2 * 40 + 10), (50, 2 * 40 + 50)])
def test_the_gradient_that_comes_in_is_as_large_as_it_is(coming: int, worst: int) -> None:
    """By hand: of a wide layer's input, a narrow output's gradient comes, or a wider one's."""
    saves = save(30, key(1)), save(40, key(2), coming=coming)
    assert Stretch(saves, (0, 1), output=1, around=(0, 0)).worst[0] == 30 + worst


def test_an_anchor_that_its_own_operation_needs_stays_until_that_is_done() -> None:
    """By hand: a ReLU's output of 5 is there beside both gradients; a convolution's is not."""
    end = replace(module(1, [(5, 5), (1, 1)]), saves=(save(5, key(1), own=True), save(1)))
    assert Stretches.whole(end, 0).cut_at(end.inner).last == 1 + 3 * 5
    end = replace(end, saves=(save(5, key(1)), save(1)))
    assert Stretches.whole(end, 0).cut_at(end.inner).last == 1 + 2 * 5


def test_gradients_of_parameters_take_the_room_of_graphs() -> None:
    """By hand: the third module needs 70, and the first no more for its graph to stay.

    A gradient of 1 is less than a fiftieth of that.
    """
    first, second, third = ([(10, 10)] * 4, [(10, 10)], [(20, 10)])
    made = enumerate((first, second, third), start=1)
    cut = Partition(tuple(replace(module(j, sizes), work=10) for j, sizes in made))
    for gradients, waits in ((0, True), (1, True), (2, False)):
        kept, *_ = kept_inside(cut, Reach((1, 2, 1)), lambda _: 0, gradients=gradients)
        assert kept.waits == waits


@pytest.mark.parametrize("sparing", [0, 1])
def test_of_anchors_that_take_as_much_those_are_tried_that_spare_more_work(sparing: int) -> None:
    """By hand: of eleven halves of blocks five anchors leave no two together, at either halves."""
    whole = module(1, [(50, 1)] * 11)
    inner = tuple(replace(p, spared=1 + (i % 2 == sparing)) for i, p in enumerate(whole.inner))
    ways = stretches_of(replace(whole, inner=inner), 0)
    (five,) = (way for way in ways if len(way.anchors) == 5)
    assert [anchor.spared for anchor in five.anchors] == [2] * 5


def test_where_work_has_a_price_all_anchors_are_tried_that_are_worth_it() -> None:
    """By hand: the first two points take less for a unit of work; one would do for the length."""
    whole = module(1, [(50, 1)] * 6)
    spared = 49, 49, 7, 7, 7
    inner = tuple(replace(p, spared=work) for p, work in zip(whole.inner, spared, strict=True))
    assert 1 - 1 / 49 * 49 > 0, "rounded: neither is quite worth its own price"
    assert inner[:2] in sparing_anchors(replace(whole, inner=inner))


def test_at_a_stretchs_end_what_is_made_again_may_be_all_of_it() -> None:
    """By hand: 32 and three times 20 are there at the end, and 78 before, at the second value."""
    saves = (
        save(16, key(1), work=100),
        save(16, key(2), work=1, coming=30),
        save(20, key(3), own=True),
        save(1, key(4)),
    )
    inner = module(1, [(52, 20), (1, 1)])
    point = replace(inner.inner[0], operation=key(3))
    whole = Stretches.whole(replace(inner, saves=saves, inner=(point,)), 0).cut_at((point,))
    assert whole.last == 1 + 2 * 16 + 3 * 20
    leaner = whole.leaner(is_last=True)
    assert leaner is not None
    assert leaner.makers_again == {key(2)}


def test_values_wait_where_that_takes_no_more_though_the_limit_is_passed() -> None:
    """By hand: the last value goes first, and the second has three times 50 and the first there."""
    saves = save(10, key(1)), save(50, key(2)), save(5, key(3), work=1)
    (whole,) = made(*saves)
    part = Stretches.whole(whole, 0)
    again = replace(part, parts=(replace(part.parts[0], made_again=frozenset({2})),))
    peaks = StepPeaks(Partition((whole,)), Reach((1,)), lambda _: 0)
    assert anchors._with_room([again], peaks, limit=1) == [part]


def test_a_graph_holds_what_is_saved_beside_anchors_and_output() -> None:
    """By hand: 20 of the first stretch, 30 of the second, whose 7 are the module's output."""
    whole = replace(
        module(1, [(25, 5), (37, 7)]),
        saves=(save(20, key(3)), save(5, key(1)), save(30, key(4)), save(7, key(2))),
        maker=key(2),
    )
    ways = Stretches.whole(whole, 0).cut_at(whole.inner)
    assert ways.graphs == [20 + 30, 30]
    assert Stretches.whole(whole, 0).graphs == [20 + 5 + 30]
    leaner = replace(ways, parts=(ways.parts[0], replace(ways.parts[1], made_again=frozenset({2}))))
    assert leaner.graphs == [20, 0]


def test_stretches_run_again_but_for_what_leads_to_anchors_alone() -> None:
    """By hand: 2 of the first stretch's 10, 3 of the second's 15."""
    inner = module(1, [(25, 5), (30, 6), (37, 7)])
    first, second = inner.inner
    points = replace(first, work=10, spared=2), replace(second, work=25, spared=3)
    ways = Stretches.whole(replace(inner, work=40), 0).cut_at(points)
    assert [ways.work_from(place) for place in range(3)] == [8 + 12 + 15, 12 + 15, 15]
    assert ways.work == 8 + 12 + 15
    assert replace(ways, keeps_last=True).work == 8 + 12


def test_before_a_graph_that_is_kept_anchors_that_spare_work_are_worth_their_room() -> None:
    """By hand: with both points as anchors 3 of the first stretch's 10 need not run again."""
    inner = module(1, [(25, 5), (30, 6), (37, 7)])
    first, second = inner.inner
    points = replace(first, work=10, spared=3), replace(second, work=25, spared=2)
    whole = replace(inner, inner=points, work=40)
    few = Stretches.whole(whole, 0)
    roomy = Room(last=10_000, carry=None, between=(7 + 5 + 6) + 37)
    found = with_room(few, roomy, few.work)
    assert found is not None
    assert (found.anchors, found.work) == (points, (10 - 3) + (25 - 10 - 2))
    tight = roomy._replace(between=roomy.between - 1)
    assert with_room(few, tight, few.work) == replace(
        Stretches.whole(whole, 0).cut_at(points[1:]), keeps_last=True
    )
    assert with_room(few, roomy._replace(between=0), few.work) is None


@pytest.mark.parametrize(("first", "carry"), [(20, 57 + 3 * 30), (50, 57 + 3 * 50)])
def test_in_a_carry_a_graph_that_is_kept_stays(first: int, carry: int) -> None:
    """By hand: output, anchor and all 57 of the last stretch, beside three times what goes."""
    whole = replace(
        module(1, [(first + 5, 5), (57, 7)]),
        saves=(save(first, key(3)), save(5, key(1)), save(20, key(4)), save(30, key(5)), save(7)),
        maker=key(2),
    )
    ways = replace(Stretches.whole(whole, 0).cut_at(whole.inner), keeps_last=True)
    assert ways.kept == 7 + 5 + 57
    assert ways.carry == 7 + 5 + carry
    assert ways.last == replace(ways, keeps_last=False).last


def test_a_value_as_large_as_the_output_is_not_the_output() -> None:
    """A transformer's block ends with a sum, which is saved nowhere."""
    whole = replace(module(1, [(12, 7)]), saves=(save(5, key(1)), save(7, key(2))), maker=key(3))
    assert Stretches.whole(whole, 0).graphs == [5 + 7]


def test_what_bypasses_a_stretch_counts_where_it_is_as_large_as_the_output() -> None:
    """By hand: between the points the output's gradient waits for the sum, anchor or not."""
    inner = module(1, [(7, 7), (7, 7), (7, 7)])
    points = (replace(inner.inner[0], forks=True), inner.inner[1])
    whole = replace(inner, inner=points)
    assert Stretches.whole(whole, 0).cut_at(points[:1]).last == 7 + 7 + (7 + 3 * 7)
    assert Stretches.whole(whole, 0).cut_at(points[1:]).last == 7 + (7 + 3 * 7) + 7
    assert Stretches.whole(inner, 0).cut_at(inner.inner[1:]).last == 7 + (7 + 3 * 7)


def test_a_backward_with_a_graph_has_its_earlier_stretches_there() -> None:
    """By hand: output and anchor, the first stretch's graph, and three times what goes."""
    whole = replace(
        module(1, [(25, 5), (37, 7)]),
        saves=(save(20, key(3)), save(5, key(1)), save(30, key(4)), save(7, key(2))),
        maker=key(2),
    )
    ways = Stretches.whole(whole, 0).cut_at(whole.inner)
    assert ways.last == 7 + 5 + 3 * 30
    assert ways.with_graph(1, is_last=True) == ways.last
    assert ways.with_graph(0, is_last=True) == ways.last + 20


def test_what_modules_begin_from_and_gradients_that_wait_are_there_anyway() -> None:
    """By hand: the third module's cascade goes through the second, and the first is done."""
    cut = Partition(tuple(module(j, [(10, 5 + j)]) for j in (1, 2, 3, 4)))
    peaks = StepPeaks(cut, Reach((1, 1, 2, 1)), lambda j: 1 if j < 4 else 0)
    ways = [Stretches.whole(each, 0) for each in cut]
    through_second = next(m for m in peaks.moments if m.end == 3 and m.through == 1)
    assert peaks.beside(ways, through_second) == 6 + 7, "its input; the gradient at its output"
    assert peaks.of(ways, through_second) == 6 + 7 + ways[1].last
    assert peaks.at_losses(ways)[2] == (6 + 7) + (7 + 8) + 2 * 8


def test_a_module_that_waits_for_another_cascade_begins_from_the_output_of_one_that_is_done() -> (
    None
):
    """By hand: the third module is also the fourth's, and the second is done before the first."""
    cut = Partition(tuple(module(j, [(10, 5 + j)]) for j in (1, 2, 3, 4)))
    peaks = StepPeaks(cut, Reach((1, 1, 3, 2)), lambda _: 0)
    ways = [Stretches.whole(each, 0) for each in cut]
    through_first = next(m for m in peaks.moments if m.end == 3 and m.through == 0)
    assert through_first.alive == (0, 2)
    assert peaks.beside(ways, through_first) == 7 + 8, "what the third begins from; its output"


def test_the_last_cascade_goes_on_through_modules_whose_own_losses_wait() -> None:
    """By hand: through the second module twice, as its own gradient does not go on to the first."""
    cut = Partition(tuple(module(j, [(10, 5 + j)]) for j in (1, 2, 3)))
    for losses, through in ((1, [(2, True), (1, False), (1, True), (0, True)]), (0, [2, 1, 0])):
        peaks = StepPeaks(cut, Reach((1, 1, 3)), lambda j, losses=losses: losses if j < 3 else 0)
        found = [(m.through, m.is_last) for m in peaks.moments if m.end == 3]
        assert found == (through if losses else [(j, True) for j in through])


def test_the_room_of_a_module_is_what_all_times_leave_at_which_it_is_there() -> None:
    """By hand, of 100: outputs of 6, 7 and 8, and 30 while a backward goes through a module."""
    cut = Partition(tuple(module(j, [(10, 5 + j)]) for j in (1, 2, 3)))
    ways = [Stretches.whole(each, 0) for each in cut]
    whole = StepPeaks(cut, Reach((1, 1, 3)), lambda _: 0)
    while_the_third_runs = 6 + 7 + (8 + 30)
    assert whole.room(ways, 0, 100) == Room(100, None, 100 - while_the_third_runs + 6)
    assert whole.room(ways, 1, 100) == Room(100 - 6, None, 100 - while_the_third_runs + 7)
    assert [whole.is_at_once(j) for j in range(3)] == [False, False, True]
    sliding = StepPeaks(cut, Reach((1, 2, 2)), lambda _: 0)
    between = 100 - (6 + 7 + (8 + 30)) + 7  # as it begins from the first one's output
    assert sliding.room(ways, 1, 100) == Room(100 - 6, 100 - 6, between)
    assert not any(sliding.is_at_once(j) for j in range(2))


def test_nothing_is_made_again_where_losses_take_more_anyway() -> None:
    wide = save(90, key(1), work=1), save(100, key(2), work=10)
    assert made_again(*wide, *REST)
    assert not made_again(*wide, *REST, at_losses=10_000)


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=1, max_size=8),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 3),
)
def test_anchors_are_points_of_their_modules_in_order(
    sizes: list[list[tuple[int, int]]], k: int
) -> None:
    cut = Partition(tuple(module(j, stretches) for j, stretches in enumerate(sizes, start=1)))
    kept = kept_inside(cut, Reach.uniform(len(cut), min(k, len(cut))), lambda _: 0)
    for each, part in zip(kept, cut, strict=True):
        places = [part.inner.index(anchor) for anchor in each.anchors]
        assert places == sorted(set(places))
        keys = {anchor.operation for anchor in each.anchors} | {START, None}
        assert each.graph_after in keys
        assert not each.made_again, "as no operation is known to have made anything"


def peak(strategy: Strategy, modules: int) -> int:
    return Rehearsal(Workload("resnet32", modules=modules, balance="memory"), strategy).peak(64)


@pytest.mark.parametrize("modules", [1, 2])
def test_few_large_modules_take_less_than_backprop_with_checkpointing(modules: int) -> None:
    """That is what it is for; with one module it is checkpointing, by finer and unequal pieces."""
    label = ("bp", 1, 1) if modules == 1 else ("dgl", 2, 2)
    ours = peak(Strategy.of(*label, recompute="blocks"), modules)
    checkpointing = min(peak(Strategy.of(segment=length), 1) for length in (1, 2, 3))
    assert ours <= checkpointing


def test_with_a_block_a_module_no_more_is_taken_than_by_recomputing_once_and_less_computed() -> (
    None
):
    """What is kept for a later backward, and for the one that comes at once, finds room anyway."""
    stage = Stage(Workload("resnet32", modules=16))
    blocks, once = (
        Rehearsal(stage, Strategy.of("dgl", 2, 2, recompute=way)).cost(64)
        for way in ("blocks", "once")
    )
    assert blocks[0] == once[0]
    assert blocks[1] < 0.9 * once[1]


def test_what_is_made_again_does_not_wait_for_the_backward_that_comes_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def peak_with(work: float) -> int:
        monkeypatch.setattr(anchors, "_MADE_AGAIN", work)
        stage = Stage(Workload("resnet32", modules=16))
        return Rehearsal(stage, Strategy.of("dgl", 2, 2, recompute="blocks")).peak(64)

    first_stage_map = 64 * 16 * 32 * 32 * 4
    assert round((peak_with(0.2) - peak_with(0.5)) / first_stage_map, 3) == 1
