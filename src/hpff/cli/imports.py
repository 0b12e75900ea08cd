"""`--import`: methods and models of a user's own, by what the command line names."""

from __future__ import annotations

import importlib
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


def import_module(name: str) -> None:
    """Import an installed module, or one of the folder one is in.

    Raises:
        UserError: there is no such module, or it fails.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"--import: is {name!r}, expected a file such as my_method.py or a module")
    try:
        importlib.import_module(name)
    except Exception as error:
        text = " ".join(str(error).split())
        raise UserError(f"--import: {name} fails: {type(error).__name__}: {text}") from error


def _import_all(context: typer.Context, given: list[str] | None) -> list[str] | None:
    if context.resilient_parsing:  # A shell completes; nothing is to run.
        return given
    for each in given or []:
        if each.endswith(".py") or "/" in each or Path(each).is_file():
            import_file(Path(each))
        else:
            import_module(each)
    return given


Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="FILE",
        callback=_import_all,
        is_eager=True,
        help="A Python file, or an installed module, with methods or models of your own; it is "
        "run.",
    ),
]
