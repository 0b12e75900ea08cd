"""Run the notebooks and write their outputs back.

    python notebooks/run.py                    # all of them
    python notebooks/run.py what_modules_learn

Needs nbclient and ipykernel, which `pip install '.[test]'` brings.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def run(path: Path, folder: Path) -> nbformat.NotebookNode:
    """A notebook with the outputs of a run from its first cell to its last.

    Args:
        path: of the notebook, which stays as it is.
        folder: where it runs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute(env={**os.environ, "PYTHONWARNINGS": "ignore"})  # They name files.
    notebook.metadata = {  # Nothing of the machine.
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def main(names: list[str]) -> None:
    """Run the named notebooks, or all."""
    for path in sorted(HERE.glob("*.ipynb")):
        if not names or path.stem in names:
            print(path.name, flush=True)
            nbformat.write(run(path, HERE), path)


if __name__ == "__main__":
    main(sys.argv[1:])
