"""What "blocks" keeps inside modules, and what that leaves in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_modules import key, module, save

from hpff import LocalSettings
from hpff.cutting.local_modules import OperationKey, Partition, Save
from hpff.engine import anchors
from hpff.engine.anchors import START, kept_inside
from hpff.engine.reach import Reach
from hpff.engine.step_peaks import StepPeaks
from hpff.engine.stretches import Stretches
from hpff.memory import Strategy, Workload
from hpff.memory.rehearsal import Rehearsal, Stage


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


def test_values_wait_where_that_takes_no_more_though_the_limit_is_passed() -> None:
    """By hand: the last value goes first, and the second has three times 50 and the first there."""
    saves = save(10, key(1)), save(50, key(2)), save(5, key(3), work=1)
    (whole,) = made(*saves)
    part = Stretches.whole(whole, 0)
    again = replace(part, parts=(replace(part.parts[0], made_again=frozenset({2})),))
    peaks = StepPeaks(Partition((whole,)), Reach((1,)), lambda _: 0)
    assert anchors._with_room([again], peaks, limit=1) == [part]


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
