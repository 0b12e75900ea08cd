"""The run directory: what a run leaves on disk, one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpff.errors import UserError
from hpff.recipes import files as recipe_files
from hpff.recipes import recipe as recipes
from hpff.recipes.recipe import Recipe
from hpff.runs.atomic_files import is_leftover, remove_leftovers, write_atomically
from hpff.runs.metrics_table import as_csv

_NUMBERS = (
    "epochs",
    "test_error_percent",
    "test_images",
    "peak_memory_bytes",
    "step_seconds",
    "train_seconds",
)
_SOURCES = ("counted", "allocator")


class RunDirectory:
    """Paths and small files of one run.

    `recipe.yaml` (resolved), `metrics.jsonl` and `metrics.csv` (a line an epoch), `checkpoint.pt`,
    `model.safetensors` (the plain backbone), `report.json` (written last: the run is finished),
    `tensorboard/`, `broken_images.txt` if any were left out, and `.hpff.lock`, which the operating
    system lets go of even after kill -9.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.metrics = path / "metrics.jsonl"
        self.table = path / "metrics.csv"
        self.broken = path / "broken_images.txt"
        self.checkpoint = path / "checkpoint.pt"
        self.weights = path / "model.safetensors"
        self.report = path / "report.json"
        self.tensorboard = path / "tensorboard"
        self._lock = path / ".hpff.lock"
        logs = (self.metrics, self.table, self.broken)
        files = (self.recipe, *logs, self.checkpoint, self.weights, self.report)
        self._names = {file.name for file in files}
        self._lock_is_ours = False

    @property
    def finished(self) -> bool:
        """Whether the run in it came to its end."""
        return self.report.exists()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold the folder for this process, making it if need be; UserError if another holds it.

        Folders that it made and that stayed empty are gone again afterwards. Nothing that was
        there before is touched, unless `check` has found the folder to be this run's.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        handle = self._open_lock()
        try:
            self._take(handle)
            try:
                yield
            finally:
                if self._lock_is_ours:
                    self._lock.unlink(missing_ok=True)
        finally:
            os.close(handle)
            _remove_empty(made)

    def check(self, recipe: Recipe, *, resume: bool) -> None:
        """Refuse a folder that this run cannot use: one with other things, or with no run.

        What a killed process left in one that it can use is deleted.
        """
        if resume:
            self._check_resumable(recipe)
        elif not self._empty():
            raise UserError(
                f"{self.path}: is not empty; go on with its run by --resume, or choose another "
                "folder with --out"
            )
        self._lock_is_ours = True
        remove_leftovers(self.path, self._names)

    def write_recipe(self, recipe: Recipe) -> None:
        """Keep the resolved recipe."""
        write_atomically(self.recipe, recipe_files.dump(recipe).encode())

    def forget(self) -> None:
        """Delete what was written of a run that then could not begin."""
        for file in (self.recipe, self.metrics, self.table):
            file.unlink(missing_ok=True)

    def read_recipe(self) -> Recipe:
        """The recipe of the run in this folder."""
        return recipe_files.load(str(self.recipe))

    def check_recipe(self, recipe: Recipe) -> None:
        """Raise UserError, naming every difference, if the run here is of another recipe."""
        different = recipes.differences(self.read_recipe(), recipe)
        if different:
            raise UserError(
                f"{self.path}: holds a run of another recipe, which --resume cannot go on with; "
                f"different: {', '.join(different)}"
            )

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """Write the metrics of all epochs so far, a line each: as JSON, and as a table."""
        write_atomically(self.table, as_csv(history).encode())
        lines = "".join(json.dumps(epoch) + "\n" for epoch in history)
        write_atomically(self.metrics, lines.encode())

    def add_broken(self, broken: Mapping[str, str]) -> None:
        """Add images that were left out to their list, `NAME: REASON`, each once."""
        before = self.broken.read_text(encoding="utf-8") if self.broken.exists() else ""
        lines = dict.fromkeys(before.splitlines())
        lines |= dict.fromkeys(f"{name}: {reason}" for name, reason in broken.items())
        text = "".join(f"{line}\n" for line in lines)
        if text != before:
            write_atomically(self.broken, text.encode())

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Write the report that marks the run as finished."""
        write_atomically(self.report, (json.dumps(report, indent=2) + "\n").encode())

    def read_report(self) -> dict[str, Any]:
        """The report of a finished run."""
        try:
            report = json.loads(self.report.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            report = None
        if not _is_report(report):
            raise UserError(
                f"{self.report}: is not a readable report; delete it and run with --resume"
            )
        whole: dict[str, Any] = report
        return whole

    def _empty(self) -> bool:
        return all(
            self._is_empty_lock(entry) or is_leftover(entry, self._names)
            for entry in self.path.iterdir()
        )

    def _is_empty_lock(self, entry: Path) -> bool:
        return entry == self._lock and entry.is_file() and entry.stat().st_size == 0

    def _open_lock(self) -> int:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            return self._open_or_make_lock()
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot use this folder for a run ({error.strerror}); choose another "
                "with --out"
            ) from error

    def _open_or_make_lock(self) -> int:
        """A handle of the lock file, never of what a link at its place points to."""
        flags = os.O_RDWR | os.O_NOFOLLOW
        self._lock_is_ours = False
        with contextlib.suppress(FileExistsError):
            handle = os.open(self._lock, flags | os.O_CREAT | os.O_EXCL, 0o666)
            self._lock_is_ours = True
            return handle
        return os.open(self._lock, flags)

    def _take(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(handle), self._lock.stat())
        except OSError:  # Held, or just let go and unlinked, by another process.
            ours = False
        if not ours:
            raise UserError(
                f"{self.path}: is in use by another hpff process; wait for it to end, or choose "
                "another folder with --out"
            )

    def _check_resumable(self, recipe: Recipe) -> None:
        if not self.recipe.exists():
            raise UserError(
                f"{self.path}: has no run to resume (no {self.recipe.name}); start it without "
                "--resume"
            )
        self.check_recipe(recipe)


def _is_report(report: object) -> bool:
    """Whether it has what the command line and a comparison read from a report."""
    if not isinstance(report, dict):
        return False
    values = [report.get(key) for key in _NUMBERS]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    machine = isinstance(report.get("machine"), dict)
    return numbers and machine and report.get("peak_memory_source") in _SOURCES


def _remove_empty(folders: list[Path]) -> None:
    """Delete the folders, innermost first, as far as they are empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()
