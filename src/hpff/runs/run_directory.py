"""The run directory: what a run leaves on disk, one process at a time."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hpff.errors import UserError
from hpff.recipes import files as recipe_files
from hpff.recipes import recipe as recipes
from hpff.recipes.recipe import Recipe
from hpff.runs import digests
from hpff.runs.atomic_files import is_leftover, remove_leftovers, write_atomically
from hpff.runs.checkpoint_content import MEMORY_SOURCES
from hpff.runs.metrics_table import as_csv

_NUMBERS = (
    "epochs",
    "test_error_percent",
    "test_images",
    "peak_memory_bytes",
    "step_seconds",
    "train_seconds",
)
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


class RunDirectory:
    """Paths and small files of one run.

    `recipe.yaml` (resolved), `metrics.jsonl` and `metrics.csv` (a line an epoch), `checkpoint.pt`,
    `model.safetensors` (the plain backbone), `report.json` (written last: the run is finished),
    `step_memory.json` (bytes alive over a counted step, if one was), `tensorboard/`,
    `broken_images.txt` if any were left out, and `.hpff.lock`, which the operating system lets go
    of even after kill -9. The report holds the digests of the files beside it.
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
        self.step_memory = path / "step_memory.json"
        self.tensorboard = path / "tensorboard"
        self._lock = path / ".hpff.lock"
        self._lock_is_ours = False
        self._digests: dict[str, str] = {}

    @property
    def finished(self) -> bool:
        """Whether the run in it came to its end."""
        return self.report.exists()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold the folder for this process, making it if need be.

        Folders that it made and that stayed empty are gone again afterwards. Nothing that was
        there before is touched, unless `check` has found the folder to be this run's.

        Raises:
            UserError: another process holds it, or it cannot be used.
        """
        made: list[Path] = []
        try:
            lock = self._take(made)
            try:
                yield
            finally:
                if self._lock_is_ours:
                    with contextlib.suppress(OSError):  # Windows deletes no open file.
                        self._lock.unlink()
                lock.release()
        finally:
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
        remove_leftovers(self.path)

    def write_recipe(self, recipe: Recipe) -> None:
        """Keep the resolved recipe."""
        self._write(self.recipe, recipe_files.dump(recipe).encode())

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
        self._write(self.table, as_csv(history).encode())
        lines = "".join(json.dumps(epoch) + "\n" for epoch in history)
        self._write(self.metrics, lines.encode())

    def write_step_memory(self, curve: Sequence[int]) -> None:
        """Keep the bytes alive over a counted step; once, and nothing where none was counted."""
        if curve and not self.step_memory.exists():
            write_atomically(self.step_memory, (json.dumps(list(curve)) + "\n").encode())

    def read_step_memory(self) -> list[int]:
        """The bytes alive over a counted step; none where they were not kept, or are damaged."""
        try:
            curve = json.loads(self.step_memory.read_bytes())
        except (OSError, ValueError):
            return []
        sound = isinstance(curve, list) and all(isinstance(v, int) and v >= 0 for v in curve)
        return curve if sound else []

    def add_broken(self, broken: Mapping[str, str]) -> None:
        """Add images that were left out to their list, `NAME: REASON`, each once."""
        exists = self.broken.exists()
        before = self.broken.read_text(encoding="utf-8", errors="replace") if exists else ""
        lines = dict.fromkeys(before.splitlines())
        lines |= dict.fromkeys(f"{name}: {reason}" for name, reason in broken.items())
        text = "".join(f"{line}\n" for line in lines)
        if text != before:
            write_atomically(self.broken, text.encode())

    def write_weights(self, content: bytes) -> None:
        """Write the plain backbone, as safetensors."""
        self._write(self.weights, content)

    def write_report(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """Write the report that marks the run as finished, with its digests; as it was written."""
        whole = digests.seal_json({**report, "files": self._digests})
        write_atomically(self.report, digests.json_text(whole))
        return whole

    def read_report(self) -> dict[str, Any]:
        """The report of a finished run.

        Raises:
            UserError: it is damaged.
        """
        try:
            report = digests.open_json(self.report.read_bytes())
            if _is_report(report):
                return report
        except (OSError, ValueError):
            pass
        raise UserError(
            f"{self.report}: is not a readable report, or it is damaged; delete it and run with "
            "--resume"
        )

    def read_whole(self, file: Path) -> bytes:
        """A file of a finished run.

        Raises:
            UserError: it cannot be read, or is not the one that the run's report means.
        """
        digest = self.read_report()["files"].get(file.name)
        try:
            content = file.read_bytes()
        except OSError as error:
            raise UserError(
                f"{file}: cannot read this file ({error.strerror}); put a whole copy in its place"
            ) from error
        if digests.sha256(content) != digest:
            raise UserError(
                f"{file}: is damaged, or of another run (its SHA-256 is not the one in "
                f"{self.report.name}); put a whole copy in its place, or delete "
                f"{self.report.name} and run with --resume"
            )
        return content

    def finished_before(self, recipe: Recipe) -> dict[str, Any]:
        """The report of a run of this recipe that came to its end.

        Raises:
            UserError: the run is of another recipe, or its report is damaged.
        """
        self._check_resumable(recipe)
        remove_leftovers(self.path)
        return self.read_report()

    def _write(self, file: Path, content: bytes) -> None:
        write_atomically(file, content)
        self._digests[file.name] = digests.sha256(content)

    def _empty(self) -> bool:
        return all(
            self._is_empty_lock(entry) or is_leftover(entry) for entry in self.path.iterdir()
        )

    def _is_empty_lock(self, entry: Path) -> bool:
        return entry == self._lock and entry.is_file() and entry.stat().st_size == 0

    def _take(self, made: list[Path]) -> FileLock:
        """The held lock; `made` gets the folders that did not exist, innermost first.

        Its file is never what a link at its place points to, and keeps what is in it.
        """
        try:
            made += [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock_is_ours = not os.path.lexists(self._lock)
            lock = FileLock(self._lock)
            lock.acquire(blocking=False)
        except Timeout as error:
            raise UserError(
                f"{self.path}: is in use by another hpff process; wait for it to end, or choose "
                "another folder with --out"
            ) from error
        except OSError as error:
            raise self._unusable(error) from error
        return lock

    def _unusable(self, error: OSError) -> UserError:
        with contextlib.suppress(OSError):
            if error.errno in _READ_ONLY and self.recipe.exists():
                return UserError(
                    f"{self.path}: holds a run that cannot be written to ({error.strerror}); make "
                    "the folder writable, or copy it and --resume the copy"
                )
        return UserError(
            f"{self.path}: cannot use this folder for a run ({error.strerror}); choose another "
            "with --out"
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
    mappings = all(isinstance(report.get(key), dict) for key in ("machine", "files"))
    return numbers and mappings and report.get("peak_memory_source") in MEMORY_SOURCES


def _remove_empty(folders: list[Path]) -> None:
    """Delete the folders, innermost first, as far as they are empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()
