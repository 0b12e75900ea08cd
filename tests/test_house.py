"""The house: imports run one way, and only public doors lie loose at the top."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import hpff

ROOT = Path(hpff.__file__).parent
# From the top down: a room may import from itself and from those below it, never upwards.
ROOMS = (
    "cli",
    "experiments",
    "analysis",
    "training",
    "runs",
    "parallel",
    "integrations",
    "memory",
    "reference",
    "learner",
    "recipes",
    "settings",
    "presets",
    "engine",
    "methods",
    "cutting",
    "auxiliary",
    "features",
    "models",
    "data",
    "schema",
    "torch_support",
    "errors",
)
FILES = sorted(ROOT.rglob("*.py"))


def room_of(module: str) -> str:
    """The room of ``hpff.ROOM...``; that of the package itself is none."""
    return module.split(".")[1] if "." in module else ""


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imported(file: Path) -> Iterator[str]:
    """Every module of ours that a file imports, also inside functions and for types alone."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("hpff."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hpff":
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                path = ROOT.parent.joinpath(*inner.split("."))
                is_module = path.with_suffix(".py").exists() or (path / "__init__.py").exists()
                yield inner if is_module else str(node.module)


def test_every_room_is_known() -> None:
    found = {room_of(module_of(file)) for file in FILES} - {""}
    assert found == set(ROOMS)


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_imports_run_one_way(file: Path) -> None:
    room = room_of(module_of(file))
    if not room:  # the package's own doors
        return
    below = ROOMS[ROOMS.index(room) :]
    upwards = [name for name in imported(file) if room_of(name) and room_of(name) not in below]
    assert upwards == []


def test_no_two_modules_import_each_other() -> None:
    edges = {module_of(file): set(imported(file)) for file in FILES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for other in edges.get(module, ()):
                visit(other, (*path, module))
            done.add(module)

    for module in edges.keys() - {"hpff"}:
        visit(module, ("hpff",))


@pytest.mark.parametrize("room", [path for path in ROOT.iterdir() if path.is_dir()])
def test_rooms_say_what_they_are(room: Path) -> None:
    if room.name == "__pycache__":
        return
    assert ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
