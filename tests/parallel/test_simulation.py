"""Simulated pipelines: what is known on paper comes out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpff.engine.reach import Reach
from hpff.parallel.pipelines import (
    Cost,
    Local,
    gpipe,
    one_f_one_b,
    seconds_a_step,
    stages,
    zero_bubble,
)
from hpff.parallel.simulation import Link, Timeline, Work, simulate

DEVICES = st.integers(2, 8)
FEW = settings(max_examples=15)
SECONDS = st.floats(0.1, 10)


def equal(count: int, forward: float = 1.0, **more: float) -> list[Cost]:
    return [Cost(forward, forward, forward, output=8.0, **more)] * count


@FEW
@given(devices=DEVICES, more=st.integers(0, 20), forward=SECONDS, backward=SECONDS)
def test_gpipe_and_1f1b_have_the_bubble_of_the_textbook(
    devices: int, more: int, forward: float, backward: float
) -> None:
    m = devices + more
    same = [Cost(forward, backward / 2, backward / 2)] * devices
    for build in (gpipe, one_f_one_b):
        timeline = simulate(build(same, m, 1))
        bubble = (devices - 1) / (m + devices - 1)
        assert timeline.busy() == pytest.approx([1 - bubble] * devices)
        assert seconds_a_step(partial(build, same, m)) == pytest.approx(timeline.seconds)


@FEW
@given(devices=DEVICES, more=st.integers(0, 20))
def test_zero_bubble_has_the_bubble_that_its_paper_says(devices: int, more: int) -> None:
    m = 2 * devices + more
    seconds = simulate(zero_bubble([Cost(1.0, 1.5, 0.5)] * devices, m, 1)).seconds
    assert m * seconds == pytest.approx(m * 3 + (devices - 1) * (1 + 1.5 - 0.5))


@FEW
@given(devices=DEVICES, m=st.integers(1, 30))
def test_backprop_holds_as_many_micro_batches_as_its_papers_say(devices: int, m: int) -> None:
    same = equal(devices, saved=60.0)
    assert simulate(gpipe(same, m, 2)).peaks() == pytest.approx([60.0] * devices)
    held = [min(m, devices - d) / m * 60 for d in range(devices)]
    assert simulate(one_f_one_b(same, m, 2)).peaks() == pytest.approx(held)
    if m >= devices:
        even = [devices / m * 60] * devices
        assert simulate(zero_bubble(same, m, 2)).peaks() == pytest.approx(even)


def test_memory_is_what_was_taken_and_not_yet_freed() -> None:
    works = [Work("a", 1, takes=5, frees=2), Work("b", 1, takes=4, frees=7), Work("c", 1, takes=1)]
    assert simulate([works]).peaks() == [7]


@FEW
@given(devices=DEVICES, each=st.integers(1, 4), k=st.integers(1, 3), auxiliary=SECONDS)
def test_ours_on_p_devices_is_as_fast_as_the_busiest(
    devices: int, each: int, k: int, auxiliary: float
) -> None:
    count = devices * each
    reach = Reach.uniform(count, min(k, each))
    costs = equal(count, auxiliary=auxiliary)
    alone = seconds_a_step(Local(costs, [count], reach).works)
    shared = seconds_a_step(Local(costs, [each] * devices, reach).works)
    works = Local(costs, [each] * devices, reach).works(1)
    assert shared == pytest.approx(max(sum(work.seconds for work in own) for own in works))
    if reach.lengths[-1] == 1:
        assert alone / shared == pytest.approx(devices)
    # Fewer cascades go through the network's first and last modules.
    assert devices - 1 < alone / shared <= devices * (1 + 1e-9)


def of_steps(timeline: Timeline, what: str) -> int:
    return sum(span.work.key[0] == what for spans in timeline.devices for span in spans)


def test_k_of_1_needs_nothing_back() -> None:
    works = Local(equal(6), [2, 2, 2], Reach.uniform(6, 1)).works(3)
    homes = {work.key: place for place, device in enumerate(works) for work in device}
    needed = [
        (place, homes[n]) for place, device in enumerate(works) for w in device for n in w.needs
    ]
    assert needed
    assert all(before == place - 1 for place, before in needed)


def test_every_module_has_its_forward_and_its_weight_gradient_once_a_step() -> None:
    for lengths in ((1, 2, 2, 2, 2, 2), (1, 2, 1, 3, 1, 2), (1, 1, 1, 1, 1, 6), (1,) * 6):
        timeline = simulate(Local(equal(6), [2, 1, 3], Reach(lengths)).works(4))
        assert of_steps(timeline, "F") == of_steps(timeline, "W") == 24
        assert of_steps(timeline, "C") == 4 * sum(k - 1 for k in lengths)
        assert all(
            abs(sum(s.work.takes - s.work.frees for s in spans)) < 1e-9
            for spans in timeline.devices
        )


def test_a_slow_link_shows() -> None:
    same = equal(6, auxiliary=1.0)
    build: Callable[[int], list[list[Work]]] = Local(same, [3, 3], Reach.uniform(6, 2)).works
    free = seconds_a_step(build)
    latent = seconds_a_step(build, Link(latency=free / 20))
    narrow = seconds_a_step(build, Link(bandwidth=8 / (3 * free)))
    assert free == pytest.approx(latent)
    assert narrow >= 3 * free
    onward = Local(same, [3, 3], Reach.uniform(6, 1)).works
    assert seconds_a_step(onward, Link(latency=100 * free)) == pytest.approx(seconds_a_step(onward))


def test_a_message_waits_for_the_one_before_on_its_link() -> None:
    sent = [Work("a", 1, gives=10), Work("b", 1, gives=10)]
    got = [Work("after b", 1, ("b",)), Work("after a", 1, ("a",))]
    timeline = simulate([sent, got], Link(latency=0.5, bandwidth=1))
    assert timeline.end_of("after b") == 1 + 10 + 10 + 0.5 + 1


def test_one_module_a_device_leaves_no_time_for_what_comes_back() -> None:
    for each, expected in ((1, 2.4), (2, 3.8)):
        count = 4 * each
        costs, reach = equal(count), Reach.uniform(count, 2)
        alone = seconds_a_step(Local(costs, [count], reach).works)
        shared = seconds_a_step(Local(costs, [each] * 4, reach).works)
        assert alone / shared == pytest.approx(expected, rel=0.1)


def test_work_that_waits_for_ever_is_refused() -> None:
    with pytest.raises(ValueError, match="wait for ever"):
        simulate([[Work("a", 1, ("b",))], [Work("b", 1, ("a",))]])


def test_stages_add_their_modules_up() -> None:
    (first, second) = stages([Cost(1, 2, 3, saved=4, output=o) for o in (5, 6, 7)], [2, 1])
    assert (first.backprop, first.saved, first.output) == (12, 8, 6)
    assert (second.backprop, second.output) == (6, 7)
