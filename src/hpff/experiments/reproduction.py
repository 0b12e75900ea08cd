"""The runs behind a table of the paper: what is missing is trained, what is finished is kept."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpff.errors import UserError
from hpff.experiments import provenance
from hpff.experiments.columns import COLUMNS, Subject
from hpff.experiments.paper_tables import PaperRow, PaperTable
from hpff.experiments.provenance import Setting
from hpff.recipes import files as recipe_files
from hpff.recipes import recipe as recipes
from hpff.recipes.recipe import Recipe
from hpff.runs import digests
from hpff.runs.atomic_files import make_folder, write_atomically
from hpff.runs.observer import Observer
from hpff.runs.run_directory import RunDirectory
from hpff.training import loop

Curve = tuple[list[int], list[float]]

# Keys that are no deviation: they say where and how a run goes, not what comes out.
_WITHOUT_EFFECT = ("seed", "device", "threads", "workers", "evaluate_every")


@dataclass(frozen=True)
class Scale:
    """How a table's runs differ from the published ones.

    `data` maps published data sets to others; `""` is any. `overrides` are `key=value`, after all
    else.
    """

    epochs: int | None = None
    subset: int | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()

    def apply(self, name: str, seed: int | None) -> Recipe:
        """The recipe of that name at this scale. Warm-up takes at most a tenth of the epochs."""
        published = recipe_files.load(name)
        changes: dict[str, object] = {
            "epochs": self.epochs,
            "subset": self.subset,
            "seed": seed,
            "data": self.data.get(published.data, self.data.get("")),
        }
        if self.epochs is not None:
            warmup = min(published.schedule.warmup_epochs, max(0, self.epochs) // 10)
            changes["schedule.warmup_epochs"] = warmup
            if published.iterations is not None:
                steps = published.iterations // published.epochs
                changes["iterations"] = max(1, self.epochs) * steps
        given = [f"{k}={json.dumps(value)}" for k, value in changes.items() if value is not None]
        return recipe_files.load(name, [*given, *self.overrides])


@dataclass(frozen=True)
class Run:
    """One run of a row: its recipe, and the folder it goes to."""

    row: PaperRow
    seed: int
    recipe: Recipe
    path: Path


@dataclass(frozen=True)
class Result:
    """A row as far as its runs are finished: by measure one number for each seed.

    `curves` are the tested epochs and their errors, run by run; `settings` what decides the
    result, with its sources.
    """

    row: PaperRow
    deviations: tuple[str, ...]
    settings: Mapping[str, Setting]
    runs: tuple[Subject, ...]
    seeds: tuple[int, ...]
    values: Mapping[str, tuple[float, ...]]
    curves: tuple[Curve, ...]

    @property
    def has_sources(self) -> bool:
        """Whether anything is known of where its settings come from."""
        return any(setting.source for setting in self.settings.values())

    @property
    def has_values(self) -> bool:
        """Whether any number of ours is there."""
        return any(self.values.values())

    def mean(self, measure: str) -> float | None:
        """The mean over seeds; None if no run is finished."""
        values = self.values[measure]
        return statistics.fmean(values) if values else None

    def spread(self, measure: str) -> float | None:
        """The sample standard deviation over seeds; None for fewer than two."""
        values = self.values[measure]
        return statistics.stdev(values) if len(values) > 1 else None

    def difference(self, measure: str) -> float | None:
        """Ours less the paper's."""
        mean, paper = self.mean(measure), self.row.paper.get(measure)
        return None if mean is None or paper is None else mean - paper


class Reproduction:
    """A table's runs below the folder `out`, where tables share runs of the same recipe.

    Without seeds each run has its recipe's.

    Attributes:
        faults: the messages of what failed: runs, and measures of finished runs.

    Raises:
        UserError: the scale does not fit a recipe.
    """

    def __init__(
        self,
        table: PaperTable,
        rows: Sequence[PaperRow],
        out: Path,
        scale: Scale,
        seeds: Sequence[int] | None,
    ) -> None:
        self.table = table
        self.rows = rows
        self.out = out
        self.faults: dict[str, None] = {}
        self._data = scale.data
        self._published = {row.name: recipe_files.load(row.recipe) for row in rows}
        self._check_data()
        self._runs = [
            self._run(row, _checked_seed(scale.apply(row.recipe, seed), seed))
            for seed in seeds or (None,)
            for row in rows
        ]

    @property
    def trains(self) -> bool:
        """Whether some measure needs trained runs."""
        return any(COLUMNS[measure].trains for measure in self.table.measures)

    def missing(self) -> list[Run]:
        """The runs that are not finished, in the order in which they are trained."""
        return [run for run in self._runs if self.trains and not RunDirectory(run.path).finished]

    def train(self, observe: Callable[[str, int], Observer], finished: Callable[[], None]) -> None:
        """Train what is missing; `finished` is called after each run.

        A run that fails does not keep the others from going.
        """
        for run in self.missing():
            try:
                loop.go_on(run.recipe, run.path, observe(run.row.name, run.seed))
            except UserError as error:
                self._note(error)
            else:
                finished()

    def results(self, *, known_only: bool = False) -> list[Result]:
        """Every row with what there is of it; with `known_only` nothing slow is measured."""
        return [self._result(row, known_only=known_only) for row in self.rows]

    def _check_data(self) -> None:
        """Refuse other data for a data set that no run here is trained or tested on."""
        tested = {COLUMNS[measure].tested_on for measure in self.table.measures}
        used = {recipe.data for recipe in self._published.values()} | tested
        unused = [name for name in self._data if name and name not in used]
        if unused:
            raise UserError(
                f"--data: is {unused[0]}=..., but no chosen row of {self.table.name} is on "
                f"{unused[0]}; expected one of {', '.join(sorted(used - {''}))}"
            )

    def _run(self, row: PaperRow, recipe: Recipe) -> Run:
        return Run(row, recipe.seed, recipe, self.out / row.name / f"seed-{recipe.seed}")

    def _result(self, row: PaperRow, *, known_only: bool) -> Result:
        runs = [run for run in self._runs if run.row is row]
        subjects = [found for run in runs if (found := self._subject(run)) is not None]
        changed = {name: getattr(runs[0].recipe, name) for name in _WITHOUT_EFFECT}
        published = dataclasses.replace(self._published[row.name], **changed)
        values = {}
        for name in self.table.measures:
            numbers = [self._read(name, run, known_only=known_only) for run in subjects]
            values[name] = tuple(value for value in numbers if value is not None)
        curves = [curve for run in subjects if (curve := self._curve(run)) is not None]
        return Result(
            row=row,
            deviations=tuple(recipes.differences(published, runs[0].recipe)),
            settings=provenance.settings(row.recipe, published, runs[0].recipe),
            runs=tuple(subjects),
            seeds=tuple(run.recipe.seed for run in subjects) if self.trains else (),
            values=values,
            curves=tuple(curves),
        )

    def _subject(self, run: Run) -> Subject | None:
        """A finished run, which must be of this recipe, and have a report that can be read."""
        if not self.trains:
            return Subject(run.recipe, run.path, {}, self._data)
        directory = RunDirectory(run.path)
        if not directory.finished:
            return None
        try:
            directory.check_recipe(run.recipe)
            return Subject(run.recipe, run.path, directory.read_report(), self._data)
        except UserError as error:
            self._note(error)
            return None

    def _curve(self, run: Subject) -> Curve | None:
        """The test errors of a run's epochs; None where there are none, or none can be read."""
        directory = RunDirectory(run.path)
        if not self.trains or not directory.metrics.exists():
            return None
        try:
            lines = directory.read_whole(directory.metrics).decode().splitlines()
            entries = [
                (line["epoch"], line["test_error_percent"]) for line in map(json.loads, lines)
            ]
            tested = [(int(epoch), float(error)) for epoch, error in entries if error is not None]
        except UserError as error:
            self._note(error)
            return None
        except (ValueError, KeyError, TypeError, RecursionError):
            self._note(
                UserError(
                    f"{directory.metrics}: is not a readable list of epochs; delete "
                    f"{directory.report.name} beside it, and the same command writes both anew"
                )
            )
            return None
        return ([epoch for epoch, _ in tested], [error for _, error in tested]) if tested else None

    def _read(self, measure: str, run: Subject, *, known_only: bool) -> float | None:
        """A measure of a run; None, with a fault noted, where it cannot be had."""
        read = COLUMNS[measure].read
        try:
            if not COLUMNS[measure].slow:
                return read(run)
            kept = _Kept(self.out / "measures" / run.path.relative_to(self.out), measure, run)
            value = kept.value()
            if value is None and not known_only:
                value = read(run)
                kept.keep(value)
        except UserError as error:
            self._note(error)
            return None
        return value

    def _note(self, error: UserError) -> None:
        self.faults |= dict.fromkeys(error.args)


def _checked_seed(recipe: Recipe, seed: int | None) -> Recipe:
    """The recipe, whose own changes must leave the seed alone where seeds are given."""
    if seed is not None and recipe.seed != seed:
        raise UserError(
            f"seed={recipe.seed}: is given beside --seeds, expected one of the two, as every seed "
            "would be the same run"
        )
    return recipe


class _Kept:
    """A slow measure in a file, with what it is of; one that is damaged is measured again."""

    def __init__(self, folder: Path, measure: str, run: Subject) -> None:
        self._file = folder / f"{measure}.json"
        weights = run.report.get("files", {}).get("model.safetensors")
        self._source = {"recipe": run.recipe.to_plain(), "data": dict(run.data), "weights": weights}

    def value(self) -> float | None:
        """The number, if it is there and of this run."""
        try:
            content = digests.open_json(self._file.read_bytes())
            return float(content["value"]) if content["source"] == self._source else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, value: float | None) -> None:
        """Write the number."""
        make_folder(self._file.parent)
        content = digests.seal_json({"value": value, "source": self._source})
        write_atomically(self._file, digests.json_text(content))
