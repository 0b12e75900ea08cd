"""The command line as processes of its own, forked from one that has imported torch already.

They are killed, stopped and limited like any other; a start takes milliseconds, not seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from hpff.cli import main

if os.name == "posix":
    SERVER = multiprocessing.get_context("forkserver")
    IMPORTS = ("matplotlib.figure", "sklearn.datasets", "hpff.experiments.reproduction")
    SERVER.set_forkserver_preload(["torch", *IMPORTS, "hpff.cli.reproduce"])


class Forked:
    """A command that runs in a process of its own.

    Args:
        arguments: of ``hpff``.
        environment: of the process.
        before: called in it first; a function of a module.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: dict[str, str],
        before: Callable[[], None] | None = None,
    ) -> None:
        if os.name != "posix":
            pytest.skip("needs forks")
        self._said = TemporaryDirectory()
        given = (tuple(arguments), str(Path.cwd()), environment, self._said.name, before)
        self._process = SERVER.Process(target=_run, args=given)
        self._process.start()

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        """Return the exit code once it has ended; None if it has not by then."""
        self._process.join(timeout)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def said(self) -> tuple[str, str]:
        """Return what it wrote to stdout and stderr, once it has ended."""
        out, err = ((Path(self._said.name) / name).read_text() for name in ("out", "err"))
        self._said.cleanup()
        return out, err

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._said.cleanup()


def _run(
    arguments: tuple[str, ...],
    folder: str,
    environment: dict[str, str],
    said: str,
    before: Callable[[], None] | None,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for place, name in enumerate(("out", "err"), start=1):
        os.dup2(os.open(Path(said) / name, os.O_WRONLY | os.O_CREAT), place)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - for as long as the process runs
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    if before is not None:
        before()
    code = main(arguments)
    sys.stdout.flush()
    os._exit(code)
