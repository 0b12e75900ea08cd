"""What is said twice, outside the package, is said alike."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import hpff

ROOT = Path(__file__).parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def matrix() -> dict[str, Any]:
    found: dict[str, Any] = read(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    return found


def test_the_version_is_said_alike() -> None:
    assert '\nversion = {attr = "hpff.__version__"}\n' in PYPROJECT
    assert read("CITATION.cff")["version"] == hpff.__version__
    assert f"\n## {hpff.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_oldest_python_that_we_promise_is_tested(matrix: dict[str, Any]) -> None:
    (oldest,) = re.findall(r'requires-python = ">=([\d.]+)"', PYPROJECT)
    assert min(matrix["python"], key=lambda text: int(text.split(".")[1])) == oldest
    for tool in (f'target-version = "py{oldest.replace(".", "")}"', f'python_version = "{oldest}"'):
        assert f"\n{tool}\n" in PYPROJECT


def test_the_oldest_torch_that_we_promise_is_tested(matrix: dict[str, Any]) -> None:
    oldest = [
        f"{package}=={version}.*"
        for package, version in re.findall(r'"(torch|torchvision)>=([\d.]+)"', PYPROJECT)
    ]
    assert " ".join(oldest) in matrix["torch"]
    assert "torch torchvision" in matrix["torch"]


def test_every_setting_of_the_matrix_is_used(matrix: dict[str, Any]) -> None:
    """A misspelled key in a matrix is an empty string, which pip installs without a word."""
    text = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    used = set(re.findall(r"\{\{ matrix\.(\w+) \}\}", text))
    assert used == matrix.keys() - {"include"}
    assert all(used == entry.keys() for entry in matrix["include"])
