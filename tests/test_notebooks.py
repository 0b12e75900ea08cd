"""The notebooks run from their first cell to their last, and their outputs are of such a run."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
EPOCHS = re.compile(r"^EPOCHS = \d+$", re.MULTILINE)


def cells(path: Path) -> list[dict[str, Any]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def outputs(code: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [output for cell in code for output in cell["outputs"]]


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebooks_run", NOTEBOOKS / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def copied(path: Path, folder: Path) -> Path:
    """A copy without outputs that trains for one epoch only."""
    content = json.loads(path.read_text(encoding="utf-8"))
    shortened = 0
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            text, count = EPOCHS.subn("EPOCHS = 1", "".join(cell["source"]))
            cell |= {"source": text, "outputs": [], "execution_count": None}
            shortened += count
    assert shortened == 1
    copy = folder / path.name
    copy.write_text(json.dumps(content), encoding="utf-8")
    return copy


@pytest.mark.long
@pytest.mark.filterwarnings("default")  # Of the machinery around kernels.
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_cell_runs(
    path: Path, runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "src"))
    done = runner.run(copied(path, tmp_path), tmp_path)
    again = [cell for cell in done.cells if cell["cell_type"] == "code"]
    assert [bool(cell["outputs"]) for cell in again] == [bool(c["outputs"]) for c in cells(path)]
    assert [each.name for each in tmp_path.iterdir()] == [path.name]  # nothing else was written


@pytest.mark.filterwarnings("default")
def test_a_cell_that_fails_fails(runner: ModuleType, tmp_path: Path) -> None:
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": None}
    content = {"cells": [{**cell, "source": "1 / 0"}], "metadata": {}}
    path = tmp_path / "broken.ipynb"
    path.write_text(json.dumps({**content, "nbformat": 4, "nbformat_minor": 5}))
    with pytest.raises(Exception, match="ZeroDivisionError"):
        runner.run(path, tmp_path)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_outputs_are_of_one_run(path: Path) -> None:
    code = cells(path)
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    found = outputs(code)
    assert {output["output_type"] for output in found} <= {
        "stream",
        "display_data",
        "execute_result",
    }
    assert all(output.get("name", "stdout") == "stdout" for output in found)
    assert sum(bool(cell["outputs"]) for cell in code) >= len(code) / 2


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_nothing_is_of_a_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|tmp|work|Users|usr|opt)/", text)
    assert len(text) < 300_000


def test_what_the_pages_say_of_gradients_is_what_came_out() -> None:
    """`check_gradients` is the last line of a cell, and its answer is an empty dictionary."""
    checked = [
        output["data"]["text/plain"]
        for path in PATHS
        for cell in cells(path)
        if "hpff.check_gradients(" in "".join(cell["source"]).splitlines()[-1]
        for output in cell["outputs"]
    ]
    assert [text if isinstance(text, str) else "".join(text) for text in checked] == ["{}", "{}"]
