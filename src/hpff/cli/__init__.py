"""The `hpff` command."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer

from hpff.cli.app import app
from hpff.cli.leaving import LeftError, advice, interrupts_first, is_follower, is_helper
from hpff.cli.process import lead_nowhere, steady_streams
from hpff.cli.signals import terminable
from hpff.errors import AgreedError, UserError, one_line

# Typer does not export the base of its usage errors.
_UsageError: Any = typer.BadParameter.__mro__[1]

_INTERRUPTED = 130
_UNREAD = 1  # As Typer says it where it sees a closed pipe first.
_LONGEST_SHOWN = 200
_MEMORY = "out of memory; try a smaller batch, smaller images, a smaller model, or more modules"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. Bad input is one line a fault on stderr and code 2.

    A fault of the program itself is one line too, and code 1.
    """
    with steady_streams(), terminable() as ended_by:
        left = None
        try:
            code = _run(arguments)
        except LeftError as error:
            code, left = _INTERRUPTED, error
        if code != _INTERRUPTED:  # Typer makes this code of Ctrl-C itself, without a word.
            return code
        words = sys.argv[1:] if arguments is None else arguments
        said = "terminated" if ended_by else "interrupted"
        lines = [] if is_helper() else [f"{said}{advice(words, left)}"]
        return _complain(lines, 128 + ended_by[0] if ended_by else code)


def _run(arguments: Sequence[str] | None) -> int:
    command = typer.main.get_command(app)
    try:
        with interrupts_first():
            code = command.main(
                args=None if arguments is None else list(arguments),
                prog_name="hpff",
                standalone_mode=False,
            )
        sys.stdout.flush()
    except AgreedError as error:
        return _complain(() if is_follower() else error.args, 2)
    except UserError as error:
        return _complain(error.args, 2)
    except _UsageError as error:
        message = error.format_message()
        return _complain([" ".join(message.split()) + " (see hpff --help)"], 2)
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED
    except LeftError:
        raise
    except BrokenPipeError:  # Nobody reads what we print: `hpff list models | head -1`.
        lead_nowhere(sys.stdout)
        return _UNREAD
    except OSError as error:
        return _complain([_from_system(error)], 2) if error.filename else _fault(error)
    except Exception as error:  # noqa: BLE001 - the last resort: a fault of the program itself
        return _fault(error)
    return code if isinstance(code, int) else 0


def _from_system(error: OSError) -> str:
    """A path that the operating system refuses: too long, not allowed, ..."""
    name = os.fsdecode(error.filename) if not isinstance(error.filename, int) else "a file"
    shown = name if len(name) <= _LONGEST_SHOWN else f"{name[: _LONGEST_SHOWN - 3]}..."
    return f"{shown}: cannot be used ({error.strerror}); mend its permissions, or choose another"


def _fault(error: Exception) -> int:
    from hpff.torch_support.out_of_memory import is_out_of_memory  # torch is slow to import

    if is_out_of_memory(error):
        return _complain([_MEMORY], 2)
    return _complain(_internal(error), 1)


def _internal(error: Exception) -> list[str]:
    """One line, under the traceback if HPFF_TRACEBACK is set."""
    if os.environ.get("HPFF_TRACEBACK"):
        traceback.print_exception(error)
    text = " ".join(str(error).split())
    what = f"internal error: {type(error).__name__}: {text}"
    return [f"{what}; please report it, with HPFF_TRACEBACK=1 for the traceback"]


def _complain(lines: Sequence[str], code: int) -> int:
    for line in lines:
        print(f"hpff: {one_line(line)}", file=sys.stderr)
    return code
