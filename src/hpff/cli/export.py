"""`hpff export`."""

from __future__ import annotations

from pathlib import Path

from hpff.cli.tables import print_json
from hpff.runs.export import export as write
from hpff.runs.finished_run import FinishedRun


def export(run: Path, folder: Path, *, json: bool) -> None:
    """Write the run as a folder for a model hub, and say what is in it."""
    write(FinishedRun.read(run), folder)
    names = sorted(file.name for file in folder.iterdir())
    if json:
        print_json({"folder": str(folder), "files": names})
        return
    print(f"{folder}: {', '.join(names)}")
