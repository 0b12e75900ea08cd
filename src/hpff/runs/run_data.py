"""The data of a finished run, found again and told from others."""

from __future__ import annotations

from pathlib import Path

from hpff import data
from hpff.data import Dataset
from hpff.errors import UserError
from hpff.runs.finished_run import FinishedRun


def own_data(run: FinishedRun) -> str:
    """The run's data where they were, or else where their relative path leads from here."""
    whole = str(run.facts.found["name"])
    folder = whole.partition(":")[2]
    return whole if folder and Path(folder).exists() else run.facts.name


def check_same(run: FinishedRun, found: Dataset, option: str) -> None:
    """Raise UserError unless the data are those that the run was trained on.

    Args:
        run: the run.
        found: what lies where its data were.
        option: of the command line, that takes data by name.
    """
    different = data.data_differences(run.facts.found, data.fingerprint(found))
    if different:
        raise UserError(
            f"{run.path}: its data {run.facts.found['name']} are not what they were; different: "
            f"{', '.join(different)}; to test on them as they are now, name them by {option}"
        )
