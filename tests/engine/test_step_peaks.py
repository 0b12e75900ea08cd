"""The worst times of a step that recomputes by blocks."""

from __future__ import annotations

from small_modules import module

from hpff.cutting.local_modules import Partition
from hpff.engine.reach import Reach
from hpff.engine.room import Room
from hpff.engine.step_peaks import StepPeaks
from hpff.engine.stretches import Stretches


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
