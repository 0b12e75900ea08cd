"""The `hpff` command."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer

from hpff.cli.app import app
from hpff.errors import UserError

# Typer does not export the base of its usage errors.
_UsageError: Any = typer.BadParameter.__mro__[1]

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. Bad input is one line a fault on stderr and code 2.

    A fault of the program itself is one line too, and code 1.
    """
    command = typer.main.get_command(app)
    try:
        code = command.main(
            args=None if arguments is None else list(arguments),
            prog_name="hpff",
            standalone_mode=False,
        )
    except UserError as error:
        return _complain(str(error).splitlines(), 2)
    except _UsageError as error:
        message = error.format_message()
        return _complain([" ".join(message.split()) + " (see hpff --help)"], 2)
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last resort: a fault of the program itself
        return _complain(_internal(error), 1)
    if code == _INTERRUPTED:  # Typer makes this code of Ctrl-C itself, without a word.
        return _complain(["interrupted; a run goes on with --resume"], _INTERRUPTED)
    return code if isinstance(code, int) else 0


def _internal(error: Exception) -> list[str]:
    """One line, under the traceback if HPFF_TRACEBACK is set."""
    if os.environ.get("HPFF_TRACEBACK"):
        traceback.print_exception(error)
    text = " ".join(str(error).split())
    what = f"internal error: {type(error).__name__}: {text}"
    return [f"{what}; please report it, with HPFF_TRACEBACK=1 for the traceback"]


def _complain(lines: Sequence[str], code: int) -> int:
    for line in lines:
        print(f"hpff: {line}", file=sys.stderr)
    return code
