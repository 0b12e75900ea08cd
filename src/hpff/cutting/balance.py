"""How units are shared out over K modules."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Literal, get_args

import numpy as np

from hpff.errors import UserError, did_you_mean

Balance = Literal["blocks", "parameters", "memory"]


def check(balance: str) -> None:
    """Refuse what is no balance.

    Raises:
        UserError: there is no such balance.
    """
    if balance not in get_args(Balance):
        known = ", ".join(repr(name) for name in get_args(Balance))
        hint = did_you_mean(str(balance), get_args(Balance))
        raise UserError(f"balance={balance!r}; expected one of {known}{hint}")


def evenly(units: int, modules: int) -> list[int]:
    """Share out blocks evenly, later modules taking one more where K does not divide them.

    Args:
        units: how many there are, the first being the stem. It belongs to module 1, unless there
            are as many modules as units.
        modules: K, 1 to ``units``.

    Returns:
        How many units each module takes.
    """
    if modules == units:
        return [1] * units
    blocks = units - 1
    sizes = [blocks // modules + (j >= modules - blocks % modules) for j in range(modules)]
    return [sizes[0] + 1, *sizes[1:]]


def lightest(costs: Sequence[int], modules: int) -> list[int]:
    """Share out units so that the costliest module costs the least.

    Of all ways to do that it is the most even one (the least sum of squares).

    Args:
        costs: of each unit.
        modules: K, 1 to the number of units.

    Returns:
        How many units each module takes.
    """
    most = _least_maximum(costs, modules)
    before = np.array([0, *accumulate(costs)], dtype=np.float64)
    units = len(costs)
    best = np.full(units + 1, np.inf)
    best[0] = 0.0
    choices = []
    for _ in range(modules):
        reached, choice = np.full(units + 1, np.inf), np.zeros(units + 1, dtype=int)
        for end in range(1, units + 1):
            cost = before[end] - before[:end]
            total = np.where(cost <= most, best[:end] + cost**2, np.inf)
            choice[end] = int(total.argmin())
            reached[end] = total[choice[end]]
        best = reached
        choices.append(choice)
    ends = [units]
    for choice in reversed(choices):
        ends.append(int(choice[ends[-1]]))
    return [end - start for end, start in pairwise(ends)][::-1]


def _least_maximum(costs: Sequence[int], modules: int) -> int:
    """The least cost of the costliest of K runs."""
    low, high = max(costs), sum(costs)
    while low < high:
        middle = (low + high) // 2
        if _runs_needed(costs, middle) <= modules:
            high = middle
        else:
            low = middle + 1
    return low


def _runs_needed(costs: Sequence[int], most: int) -> int:
    runs, held = 1, 0
    for cost in costs:
        held += cost
        if held > most:
            runs, held = runs + 1, cost
    return runs
