"""`hpff train`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from hpff.analysis.exits import exit_errors
from hpff.analysis.report.run_report import NAME, run_page
from hpff.analysis.report.runs import RunFacts
from hpff.analysis.subjects import Pass
from hpff.cli.leaving import resumable
from hpff.cli.progress import Unseen, progress
from hpff.cli.reports import write_or_warn
from hpff.cli.tables import print_json
from hpff.errors import UserError
from hpff.experiments.comparison_report import megabytes
from hpff.recipes import files as recipe_files
from hpff.recipes.recipe import Recipe
from hpff.runs.run_directory import RunDirectory
from hpff.runs.run_paths import default_path
from hpff.training import loop
from hpff.training.setup import Parts


def train(
    name: str,
    overrides: Sequence[str],
    out: Path | None,
    *,
    resume: bool,
    wandb: str | None,
    json: bool,
    exits: bool = False,
    imports: Sequence[str] = (),
) -> None:
    """Train a recipe, on several processes if it says so; say how it ended and where it lies."""
    recipe = recipe_files.load(name, overrides)
    given = _Given(name, overrides, resume=resume, wandb=wandb, json=json, exits=exits)
    if recipe.parallel == "none":
        _train(recipe, out or default_path(name, resume=resume), given)
        return
    if exits:
        raise UserError(
            "--exits: no process has all auxiliary networks of a run on several; train with "
            "parallel=none, or see `hpff analyze` afterwards"
        )
    from hpff.parallel import processes
    from hpff.parallel.agreement import check_same

    if processes.is_rank():
        with processes.joined(recipe.ranks, recipe.rank_timeout, recipe.replicas) as rank:
            check_same("recipes", repr(recipe))
            if rank:
                loop.train(recipe, Path(), resume=resume, observer=Unseen())
                return
            if out and processes.is_restarted() and RunDirectory(out).recipe.exists():
                given = replace(given, resume=True)
            _train(recipe, out or default_path(name, resume=resume), given)
        return
    path = out or default_path(name, resume=resume)
    arguments = ["train", name, *overrides, "--out", str(path)]
    arguments += [word for each in imports for word in ("--import", each)]
    arguments += ["--wandb", wandb] if wandb else []
    arguments += [flag for flag, on in (("--resume", resume), ("--json", json)) if on]
    run = RunDirectory(path)
    with resumable(path, run.recipe.exists):
        code = processes.start_ranks(
            arguments, recipe.ranks * recipe.replicas, run.checkpoint.exists
        )
    if code:
        raise typer.Exit(code)


@dataclass(frozen=True)
class _Given:
    """What was asked for on the command line."""

    name: str
    overrides: Sequence[str]
    resume: bool
    wandb: str | None
    json: bool
    exits: bool


def _train(recipe: Recipe, path: Path, given: _Given) -> None:
    before = given.resume and RunDirectory(path).finished
    measure = _exit_errors if given.exits else None
    begun = RunDirectory(path).recipe.exists
    with resumable(path, begun), progress(wandb=given.wandb) as observer:
        report = loop.train(recipe, path, resume=given.resume, observer=observer, measure=measure)
    if not (before and (path / NAME).exists()):
        command = shlex.join(["hpff", "train", given.name, *given.overrides, "--out", str(path)])
        write_or_warn(path, lambda: run_page(RunFacts.read(path), command))
    if given.json:
        print_json({"run": str(path), **report})
        return
    state = "was finished before" if before else "finished"
    print(
        f"{path}: {state}, {_result(report)} after epoch "
        f"{report['epochs']}, peak memory {megabytes(report['peak_memory_bytes'])} "
        f"({report['peak_memory_source']}), {1000 * report['step_seconds']:.1f} ms a step"
        + _left_out(report.get("broken_images", 0))
    )


def _exit_errors(parts: Parts) -> dict[str, Any]:
    """What every auxiliary network gets wrong of the test images, alone and all together."""
    return exit_errors(parts.learner, Pass(parts.test))


def _result(report: Mapping[str, Any]) -> str:
    error = f"error {report['test_error_percent']:.2f} %"
    if "test_miou_percent" in report:
        return f"test mIoU {report['test_miou_percent']:.2f} %, pixel {error}"
    return f"test {error}"


def _left_out(count: int) -> str:
    return f"; {count} broken images were left out (broken_images.txt)" if count else ""
