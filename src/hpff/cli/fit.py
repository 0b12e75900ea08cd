"""`hpff fit`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hpff.cli.bars import bar
from hpff.cli.sizes import bytes_of, gib
from hpff.cli.tables import print_folded, print_json, show_table
from hpff.cli.workload import WorkloadOptions
from hpff.memory import Choice, Fit
from hpff.memory import fit as search
from hpff.memory.fitting import MOST_WORK
from hpff.settings import LocalSettings


@dataclass(frozen=True, kw_only=True)
class FitOptions(WorkloadOptions):
    """What the command line said."""

    budget: str
    method: str


def fit(given: FitOptions, *, json: bool) -> None:
    """Search, and show what was tried and the lines to paste."""
    budget = bytes_of(given.budget)
    workload = given.workload()
    with bar(MOST_WORK) as observe:
        found = search(
            workload,
            batch=given.batch,
            budget=budget,
            method=given.method,
            light=given.light,
            observe=observe,
        )
    if json:
        print_json(found.to_plain())
        return
    show_table(
        ("method", "modules", "peak, GiB", "operations", "fits"),
        [_cells(choice) for choice in (*found.baselines, *found.tried)],
        _caption(given, found),
    )
    for line in _advice(given, found):
        print_folded(line)


def _cells(choice: Choice) -> tuple[str, ...]:
    modules = "" if choice.strategy.settings.is_backprop else str(choice.modules)
    return (
        str(choice.strategy),
        modules,
        gib(choice.peak),
        f"{choice.operations:.2f}",
        "yes" if choice.fits else "no",
    )


def _caption(given: FitOptions, found: Fit) -> str:
    shape = "×".join(map(str, found.workload.image))
    return (
        f"{given.model}, batch {found.batch} of {shape}, {given.precision}, {given.optimizer}, "
        f"within {gib(found.budget)} GiB. Operations: arithmetic of a step over backprop's."
    )


def _advice(given: FitOptions, found: Fit) -> Iterator[str]:
    fitting = [choice for choice in found.baselines if choice.fits]
    if fitting:
        name = "backprop" if fitting[0].strategy.segment == 0 else "backprop with checkpointing"
        yield f"{name} fits, and learns as it always does: nothing else is needed."
    if found.best is None:
        largest = found.largest_batch
        what = f"a batch of {largest} does" if largest else "no batch does either"
        yield (
            f"Nothing that was tried fits with batch {found.batch}; with the leanest way {what}. "
            "Fewer images at a time with several backward calls before a step give the same batch."
        )
        return
    settings = _written(found.best)
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


def _written(choice: Choice) -> dict[str, Any]:
    """What differs from the defaults, and what a recipe has other defaults of."""
    given, usual = choice.strategy.settings.to_plain(), LocalSettings().to_plain()
    changed = {key: value for key, value in given.items() if value != usual[key]}
    first = {
        "method": given["method"],
        "modules": choice.modules,
        "balance": "memory",
        "cascade": given["cascade"],
        "patches": given["patches"],
    }
    return {**first, **{key: value for key, value in changed.items() if key not in first}}
