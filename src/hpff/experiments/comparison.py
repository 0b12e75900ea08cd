"""Several methods on one recipe: which runs that makes, and what they show side by side."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpff.errors import UserError
from hpff.recipes import recipe as recipes
from hpff.recipes.recipe import Recipe
from hpff.runs.observer import Observer
from hpff.settings import BASELINE
from hpff.torch_support.out_of_memory import OutOfMemoryError, out_of_memory_as
from hpff.training import loop
from hpff.training.memory_check import check_memory
from hpff.training.setup import assemble


@dataclass(frozen=True)
class Row:
    """A method over its seeds: test errors of the last epoch in percent, and costs.

    In a segmentation `mious` are the mean intersections over union, and errors those of pixels.
    """

    label: str
    errors: tuple[float, ...]
    peak_memory_bytes: int
    peak_memory_source: str
    step_seconds: float
    mious: tuple[float, ...] = ()

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
    method = "dgl" if recipe.local.is_backprop else recipe.local.method_name
    return [BASELINE, method, f"{method}+hpff"]


def recipe_for(label: str, recipe: Recipe, seed: int) -> Recipe:
    """The recipe with a label's method, levels and patches, and a seed.

    See :meth:`hpff.LocalSettings.with_label`.

    Raises:
        UserError: the label is unknown.
    """
    changed = dataclasses.replace(recipe, local=recipe.local.with_label(label), seed=seed)
    return recipes.parse(changed.to_plain(), label)


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

    A run that fails, such as one that diverges or finds too little memory, does not keep the others
    from going.

    Returns:
        The rows of all labels that have a finished run, and the messages of the runs that failed.

    Raises:
        UserError: one of the runs cannot be on any machine; nothing is trained then.
    """
    _check_folder(out, resume=resume)
    runs = {(label, seed): recipe_for(label, recipe, seed) for seed in seeds for label in labels}
    for label in labels:
        _check_possible(runs[label, seeds[0]], out / label)
    reports: dict[str, list[Mapping[str, Any]]] = {label: [] for label in labels}
    faults: list[str] = []
    for (label, seed), changed in runs.items():
        path = out / label / f"seed-{seed}"
        try:
            reports[label].append(loop.go_on(changed, path, observe(label, seed)))
        except UserError as error:
            faults += [f"{label} seed {seed}: {line}" for line in error.args]
    return [_row(label, found) for label, found in reports.items() if found], faults


def _check_possible(recipe: Recipe, path: Path) -> None:
    """Build a recipe; where memory is too small its runs will say so, one by one."""
    with contextlib.suppress(OutOfMemoryError), out_of_memory_as(f"{path}: out of memory"):
        check_memory(recipe, path)
        assemble(recipe)


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
        mious=tuple(r["test_miou_percent"] for r in reports if "test_miou_percent" in r),
    )
