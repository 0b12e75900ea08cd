"""Stretches of a module: what their backwards take, and the anchors that are tried."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_modules import key, module, save

from hpff.cutting.local_modules import Save
from hpff.engine.room import Room, with_room
from hpff.engine.stretches import Stretch, Stretches
from hpff.engine.tried_anchors import sparing_anchors, stretches_of


def test_ways_to_cut_a_module_come_in_one_order() -> None:
    """Two of them may be as good, and the same must be chosen in every process."""
    whole = module(1, [(100, 1), (100, 1)] * 4 + [(50, 3), (70, 2), (20, 5)])
    ways = [
        (len(way.anchors), [-anchor.saved for anchor in way.anchors])
        for way in stretches_of(whole, 0)
    ]
    assert len(ways) > len({count for count, _ in ways}), "some have as many anchors"
    assert ways == sorted(ways)


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
