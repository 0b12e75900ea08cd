"""`hpff evaluate --exits`."""

from __future__ import annotations

from pathlib import Path

from hpff.analysis.exits import exit_errors, learner_of
from hpff.analysis.subjects import Subject
from hpff.cli.tables import print_folded, print_json, show_table
from hpff.errors import UserError, one_line


def evaluate_exits(run: Path, dataset: str | None, *, json: bool) -> None:
    """Score a run's auxiliary networks on test images, each alone and all with the head.

    Raises:
        UserError: the run has none, or they give no class scores.
    """
    subject = Subject.of_run(run, dataset=dataset, label=str(run))
    learner = learner_of(subject.network)
    errors = exit_errors(learner, subject.test(None))
    if not errors:
        raise UserError(f"--exits: no auxiliary network of {run} gives class scores; leave it out")
    if json:
        print_json({"run": str(run), "dataset": subject.dataset.name, **errors})
        return
    found: dict[str, float] = {}
    for level in ("independent", "cascade"):
        if f"{level}_errors" in errors:
            *exits, head = errors[f"{level}_errors"]
            modules = sorted(j for name, j in learner.auxiliary_networks.contexts if name == level)
            found |= {f"{level}, module {j}": e for j, e in zip(modules, exits, strict=True)}
    found |= {"the head": head, "all together": errors["ensemble_error_percent"]}
    show_table(("exit", "error, %"), [(name, f"{error:.2f}") for name, error in found.items()])
    print_folded(one_line(f"{run} on {subject.dataset.name} (test)"))
