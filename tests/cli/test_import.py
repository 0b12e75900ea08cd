"""A method in a file of one's own, from the page to hpff compare."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Answer = Any
PAGE = Path(__file__).parents[2] / "docs" / "add-a-method.md"


@pytest.fixture
def my_method(folder: Path) -> Path:
    """Return the page's file."""
    file = folder / "my_method.py"
    file.write_text(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0])
    return file


def test_the_pages_method_reaches_every_command(
    my_method: Path, hpff_fork: Callable[..., Answer]
) -> None:
    given = ("--import", str(my_method))
    compared = hpff_fork(
        "compare", "tiny.yaml", "--methods", "lookahead,lookahead+hpff", "--json", *given
    )
    assert compared.code == 0, compared.err
    rows = [row["method"] for row in json.loads(compared.out)["rows"]]
    assert rows == ["lookahead", "lookahead+hpff"]
    listed = hpff_fork("list", "methods", *given)
    assert "lookahead" in listed.out
    checked = hpff_fork("recipe", "check", "tiny.yaml", "method=lookahead", *given)
    assert checked.out == "tiny.yaml: no faults\n"


def test_a_recipe_alone_imports_nothing(my_method: Path, hpff: Callable[..., Answer]) -> None:
    refused = hpff("train", "tiny.yaml", "method=my_method")
    assert refused.code == 2
    assert "unknown method 'my_method'" in refused.err
    assert "--import FILE" in refused.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is no Python file"),
        ("1/0", "fails: ZeroDivisionError: division by zero"),
        ("from hpff.methods import *\nregister('dgl')(PredSim)", "method 'dgl' is"),
    ],
)
def test_files_that_cannot_be_imported(
    content: str | None, words: str, folder: Path, hpff: Callable[..., Answer]
) -> None:
    if content is not None:
        (folder / "wrong.py").write_text(content)
    answer = hpff("train", "tiny.yaml", "--import", "wrong.py")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert words in answer.err
    assert not (folder / "runs").exists()
