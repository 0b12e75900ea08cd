"""`hpff fit`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from hpff.cli.bars import bar
from hpff.cli.sizes import Unit, bytes_of, unit_for
from hpff.cli.tables import print_folded, print_json, show_table
from hpff.cli.workload import WorkloadOptions
from hpff.memory import Choice, Fit
from hpff.memory import fit as search
from hpff.memory.fitting import MOST_WORK, NEAREST
from hpff.settings import LocalSettings


@dataclass(frozen=True, kw_only=True)
class FitOptions(WorkloadOptions):
    """What the command line said."""

    budget: str
    method: str | None


def fit(given: FitOptions, *, json: bool) -> None:
    """Search, and show what was tried and the lines to paste."""
    budget = bytes_of(given.budget)
    workload = given.workload()
    with bar(MOST_WORK) as observe:
        found = search(
            workload,
            batch=given.batch,
            budget=budget,
            method=given.method or "dgl",
            light=given.light,
            presets=NEAREST if given.method is None and given.light else (),
            observe=observe,
        )
    if json:
        print_json(found.to_plain())
        return
    unit = unit_for(max(choice.peak for choice in found.baselines))
    show_table(
        ("method", "modules", f"peak, {unit.name}", "operations", "fits"),
        [_cells(choice, unit) for choice in _shown(found)],
        _caption(given, found),
    )
    for line in _advice(given, found):
        print_folded(line)


def _shown(found: Fit) -> Iterator[Choice]:
    """Of each way what fits, or is the leanest."""
    yield from found.baselines
    for _, tried in groupby(found.tried, key=lambda choice: choice.strategy):
        yield min(tried, key=lambda choice: (not choice.fits, choice.peak))


def _cells(choice: Choice, unit: Unit) -> tuple[str, ...]:
    modules = "" if choice.strategy.settings.is_backprop else str(choice.modules)
    return (
        str(choice.strategy),
        modules,
        unit.of(choice.peak),
        f"{choice.operations:.2f}",
        "yes" if choice.fits else "no",
    )


def _caption(given: FitOptions, found: Fit) -> str:
    budget = unit_for(found.budget)
    shape = "×".join(map(str, found.workload.image))
    return (
        f"{given.model}, batch {found.batch} of {shape}, {given.precision}, {given.optimizer}, "
        f"within {budget.of(found.budget)} {budget.name}. Operations: arithmetic of a step over "
        "backprop's. Of each way the fewest modules that fit, or those that take the least."
    )


def _advice(given: FitOptions, found: Fit) -> Iterator[str]:
    nearest, best = found.nearest, found.best
    if found.standing > found.budget:
        unit = unit_for(found.standing)
        yield (
            f"No way of training fits: parameters, and what {given.optimizer} keeps of them, take "
            f"{unit.of(found.standing)} {unit.name} alone. A smaller model or another --optimizer "
            "may take less."
        )
    elif nearest is None and best is None:
        largest = found.largest_batch
        what = f"a batch of {largest} does" if largest else "no batch does either"
        yield (
            f"Nothing that was tried fits with batch {found.batch}; with the leanest way {what}. "
            "Fewer images at a time with several backward calls before a step give the same batch."
        )
    if nearest is not None:
        yield _why_nearest(nearest)
        if not nearest.strategy.is_plain_backprop:
            yield from _lines(given, nearest)
    if best is not None and best is not nearest:
        yield f"Of local learning computes least: {best.strategy}, in {best.modules} modules."
        yield from _lines(given, best)


def _why_nearest(nearest: Choice) -> str:
    if nearest.preset:
        return (
            f'Nearest to backprop\'s error in our study: preset="{nearest.preset}", in '
            f"{nearest.modules} modules."
        )
    if not nearest.strategy.is_plain_backprop:
        return "Backprop fits, recomputed by blocks: the same gradients, bit for bit."
    name = "backprop with checkpointing" if nearest.strategy.segment else "backprop"
    return f"{name} fits, and learns as it always does: nothing else is needed."


def _lines(given: FitOptions, choice: Choice) -> Iterator[str]:
    """What to paste."""
    settings = _written(choice)
    yield "In Python:"
    yield ""
    yield "    learner = LocalLearner("
    yield f"        model, example=images[:2], num_classes={given.num_classes},"
    yield from (f"        {key}={value!r}," for key, value in settings.items())
    yield "    )"
    yield ""
    yield "In a recipe:"
    yield ""
    yield from (f"    {key}: {value}" for key, value in settings.items())
    yield ""


def _written(choice: Choice) -> dict[str, Any]:
    """What differs from the defaults, and what a recipe has other defaults of."""
    settings = choice.strategy.settings
    recompute: dict[str, Any] = {"recompute": settings.recompute}
    if settings.recompute_budget != 1:
        recompute["recompute_budget"] = settings.recompute_budget
    if settings.is_backprop:
        return {"method": settings.method_name, **recompute}
    if choice.preset:
        cut = {"modules": choice.modules, "balance": "memory"}
        return {"preset": choice.preset, **cut, **recompute}
    given, usual = settings.to_plain(), LocalSettings().to_plain()
    changed = {key: value for key, value in given.items() if value != usual[key]}
    first = {
        "method": given["method"],
        "modules": choice.modules,
        "balance": "memory",
        "cascade": given["cascade"],
        "patches": given["patches"],
    }
    return {**first, **{key: value for key, value in changed.items() if key not in first}}
