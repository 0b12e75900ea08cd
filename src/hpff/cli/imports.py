"""`--import FILE`: methods of a user's own, registered by a file that the command line names."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Annotated

import typer

from hpff.errors import UserError


def import_file(path: Path) -> None:
    """Run a Python file, which may register methods.

    Raises:
        UserError: there is no such file, or it fails.
    """
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"--import: {path} is no Python file, expected one such as my_method.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if path.stem in sys.modules:
        other = getattr(sys.modules[path.stem], "__file__", None)
        if other is None or Path(other).resolve() != path.resolve():
            raise UserError(f"--import: a module {path.stem!r} is there already; rename {path}")
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[path.stem]
        text = " ".join(str(error).split())
        name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"--import: {path} fails: {name}{text}") from error


def _import_all(files: list[Path] | None) -> list[Path] | None:
    for path in files or []:
        import_file(path)
    return files


Imports = Annotated[
    list[Path] | None,
    typer.Option(
        "--import",
        metavar="FILE",
        callback=_import_all,
        is_eager=True,
        help="A Python file that registers methods of your own; it is run.",
    ),
]
