"""Several methods on one recipe: which runs that makes, and what they show side by side."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpff.errors import UserError
from hpff.recipes import recipe as recipes
from hpff.recipes.recipe import Named, Recipe
from hpff.training import loop
from hpff.training.loop import Observer
from hpff.training.setup import assemble

BASELINE = "bp"


@dataclass(frozen=True)
class _Variant:
    """What `METHOD+SUFFIX` switches on."""

    independent: bool
    cascade: bool
    patches: bool


_VARIANTS = {
    "": _Variant(independent=True, cascade=False, patches=False),
    "cl": _Variant(independent=False, cascade=True, patches=False),
    "hilo": _Variant(independent=True, cascade=True, patches=False),
    "pff": _Variant(independent=True, cascade=False, patches=True),
    "cl+pff": _Variant(independent=False, cascade=True, patches=True),
    "hpff": _Variant(independent=True, cascade=True, patches=True),
}


@dataclass(frozen=True)
class Row:
    """A method over its seeds: test errors of the last epoch in percent, and costs."""

    label: str
    errors: tuple[float, ...]
    peak_memory_bytes: int
    peak_memory_source: str
    step_seconds: float

    @property
    def error(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.errors)

    @property
    def spread(self) -> float | None:
        """The sample standard deviation over seeds; None for a single seed."""
        return statistics.stdev(self.errors) if len(self.errors) > 1 else None


def default_labels(recipe: Recipe) -> list[str]:
    """Backprop, the recipe's method alone (DGL for a recipe of backprop), and with HPFF."""
    method = recipe.method.name if recipe.local else "dgl"
    return [BASELINE, method, f"{method}+hpff"]


def recipe_for(label: str, recipe: Recipe, seed: int) -> Recipe:
    """The recipe with a label's method, levels and patches, and a seed.

    k and n come from the recipe, and are 2 where it has 1; `+hpff4` asks for n = 4. Level weights
    are kept only where both levels are on: a level alone has weight 1. Raises UserError for an
    unknown label.
    """
    if label == BASELINE:
        changed = dataclasses.replace(recipe, method=Named(BASELINE), seed=seed)
    else:
        changed = _local_recipe(label, recipe, seed)
    return recipes.parse(changed.to_plain(), label)


def _local_recipe(label: str, recipe: Recipe, seed: int) -> Recipe:
    method, plus, tail = label.partition("+")
    suffix = tail.rstrip("0123456789")
    number = tail.removeprefix(suffix)
    known = suffix in _VARIANTS and bool(plus) == bool(tail)
    bad_number = number != "" and (
        not suffix.endswith("pff") or number.startswith("0") or len(number) > 9
    )
    if not known or method in ("", BASELINE) or bad_number:
        names = ", ".join(f"METHOD+{name}" if name else "METHOD" for name in _VARIANTS)
        raise UserError(
            f"{label}: unknown label in --methods, expected {BASELINE}, {names}; "
            "n may follow pff and hpff (METHOD+hpff4)"
        )
    variant = _VARIANTS[suffix]
    patches = int(number) if number else max(recipe.patches, 2)
    cascade = max(recipe.cascade, 2) if isinstance(recipe.cascade, int) else recipe.cascade
    both = variant.independent and variant.cascade
    return dataclasses.replace(
        recipe,
        method=recipe.method if method == recipe.method.name else Named(method),
        independent=variant.independent,
        cascade=cascade if variant.cascade else 1,
        patches=patches if variant.patches else 1,
        independent_weight=recipe.independent_weight if both else None,
        cascade_weight=recipe.cascade_weight if both else None,
        seed=seed,
    )


def run(
    recipe: Recipe,
    labels: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    *,
    resume: bool,
    observe: Callable[[str, int], Observer],
) -> tuple[list[Row], list[str]]:
    """Train every label with every seed below `out`; with `resume`, finished runs are kept.

    A run that fails, such as one that diverges, does not keep the others from going. Gives the rows
    of all labels that have a finished run, and the messages of the runs that failed. Raises
    UserError before any training if one of the runs cannot be.
    """
    _check_folder(out, resume=resume)
    runs = {(label, seed): recipe_for(label, recipe, seed) for seed in seeds for label in labels}
    for label in labels:
        assemble(runs[label, seeds[0]])
    reports: dict[str, list[Mapping[str, Any]]] = {label: [] for label in labels}
    faults: list[str] = []
    for (label, seed), changed in runs.items():
        path = out / label / f"seed-{seed}"
        try:
            reports[label].append(loop.go_on(changed, path, observe(label, seed)))
        except UserError as error:
            faults += [f"{label} seed {seed}: {line}" for line in str(error).splitlines()]
    return [_row(label, found) for label, found in reports.items() if found], faults


def _check_folder(out: Path, *, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file, expected a folder for the comparison")
    full = out.is_dir() and any(out.iterdir())
    if full and not resume:
        raise UserError(
            f"{out}: is not empty; go on with its runs by --resume, or choose another folder "
            "with --out"
        )
    if resume and not full:
        raise UserError(f"{out}: has no comparison to resume; start it without --resume")


def _row(label: str, reports: Sequence[Mapping[str, Any]]) -> Row:
    return Row(
        label=label,
        errors=tuple(report["test_error_percent"] for report in reports),
        peak_memory_bytes=max(report["peak_memory_bytes"] for report in reports),
        peak_memory_source=reports[0]["peak_memory_source"],
        step_seconds=statistics.median(report["step_seconds"] for report in reports),
    )
