"""`hpff train`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from hpff.analysis.exits import exit_errors
from hpff.analysis.report.run_report import NAME, run_page
from hpff.analysis.report.runs import RunFacts
from hpff.analysis.subjects import Pass
from hpff.cli.progress import progress
from hpff.cli.reports import write_or_warn
from hpff.cli.tables import print_json
from hpff.experiments.comparison_report import megabytes
from hpff.recipes import files as recipe_files
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
) -> None:
    """Train a recipe, and say how it ended and where it lies."""
    recipe = recipe_files.load(name, overrides)
    path = out or default_path(name, resume=resume)
    before = resume and RunDirectory(path).finished
    with progress(wandb=wandb) as observer:
        measure = _exit_errors if exits else None
        report = loop.train(recipe, path, resume=resume, observer=observer, measure=measure)
    if not (before and (path / NAME).exists()):
        write_or_warn(path, lambda: run_page(RunFacts.read(path), _command(name, overrides, path)))
    if json:
        print_json({"run": str(path), **report})
        return
    state = "was finished before" if before else "finished"
    print(
        f"{path}: {state}, test error {report['test_error_percent']:.2f} % after epoch "
        f"{report['epochs']}, peak memory {megabytes(report['peak_memory_bytes'])} "
        f"({report['peak_memory_source']}), {1000 * report['step_seconds']:.1f} ms a step"
        + _left_out(report.get("broken_images", 0))
    )


def _exit_errors(parts: Parts) -> dict[str, list[float]]:
    """What every auxiliary network gets wrong of the test images."""
    return exit_errors(parts.learner, Pass(parts.test))


def _command(name: str, overrides: Sequence[str], path: Path) -> str:
    """The command that makes this run."""
    return shlex.join(["hpff", "train", name, *overrides, "--out", str(path)])


def _left_out(count: int) -> str:
    return f"; {count} broken images were left out (broken_images.txt)" if count else ""
