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
from hpff.training import recipe as recipes
from hpff.training import recipe_files
from hpff.training.files import remove_leftovers, write_atomically
from hpff.training.recipe import Recipe


class RunDirectory:
    """Paths and small files of one run.

    `recipe.yaml` (resolved), `metrics.jsonl` (a line an epoch), `checkpoint.pt`,
    `model.safetensors` (the plain backbone), `report.json` (written last: the run is finished),
    `tensorboard/`, and `.lock`, which the operating system lets go of even after kill -9.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.metrics = path / "metrics.jsonl"
        self.checkpoint = path / "checkpoint.pt"
        self.weights = path / "model.safetensors"
        self.report = path / "report.json"
        self.tensorboard = path / "tensorboard"
        self._lock = path / ".lock"

    @property
    def finished(self) -> bool:
        """Whether the run in it came to its end."""
        return self.report.exists()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold the folder for this process, making it if need be; UserError if another holds it.

        Folders that it made and that stayed empty are gone again afterwards.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        handle = self._open_lock()
        try:
            self._take(handle)
            try:
                remove_leftovers(self.path)
                yield
            finally:
                self._lock.unlink(missing_ok=True)
        finally:
            os.close(handle)
            _remove_empty(made)

    def check(self, recipe: Recipe, *, resume: bool) -> None:
        """Refuse a folder that this run cannot use: one with other things, or with no run."""
        if resume:
            self._check_resumable(recipe)
        elif not self._empty():
            raise UserError(
                f"{self.path}: is not empty; go on with its run by --resume, or choose another "
                "folder with --out"
            )

    def write_recipe(self, recipe: Recipe) -> None:
        """Keep the resolved recipe."""
        write_atomically(self.recipe, recipe_files.dump(recipe).encode())

    def read_recipe(self) -> Recipe:
        """The recipe of the run in this folder."""
        return recipe_files.load(str(self.recipe))

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """Write the metrics of all epochs so far, one JSON line each."""
        lines = "".join(json.dumps(epoch) + "\n" for epoch in history)
        write_atomically(self.metrics, lines.encode())

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Write the report that marks the run as finished."""
        write_atomically(self.report, (json.dumps(report, indent=2) + "\n").encode())

    def read_report(self) -> dict[str, Any]:
        """The report of a finished run."""
        try:
            report: dict[str, Any] = json.loads(self.report.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.report}: is not a readable report; delete it and run with --resume"
            ) from error
        return report

    def _empty(self) -> bool:
        return all(entry == self._lock for entry in self.path.iterdir())

    def _open_lock(self) -> int:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            return os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot use this folder for a run ({error.strerror}); choose another "
                "with --out"
            ) from error

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
        different = recipes.differences(self.read_recipe(), recipe)
        if different:
            raise UserError(
                f"{self.path}: holds a run of another recipe, which --resume cannot go on with; "
                f"different: {', '.join(different)}"
            )


def _remove_empty(folders: list[Path]) -> None:
    """Delete the folders, innermost first, as far as they are empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()
