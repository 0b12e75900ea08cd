"""`hpff analyze`."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpff.analysis.report.study_charts import svg_files
from hpff.analysis.report.study_report import study_page
from hpff.analysis.study import Options, Study, pieces, study
from hpff.analysis.subjects import Subject
from hpff.cli.bars import bar
from hpff.cli.compare import split
from hpff.cli.tables import print_json, show_table
from hpff.errors import UserError, shown
from hpff.recipes.yaml_text import parse_yaml
from hpff.runs.atomic_files import make_folder, write_atomically


@dataclass(frozen=True, kw_only=True)
class AnalyzeOptions:
    """What the command line said."""

    runs: Sequence[str]
    dataset: str | None = None
    samples: int = 2000
    embedded: int = 500
    gradient_batches: int = 4
    images: str | None = None
    pictures: int = 4
    modules: str | None = None
    image_size: int | None = None
    labels: str | None = None
    figures: bool = False
    out: Path | None = None

    def options(self) -> Options:
        """How much is looked at.

        Raises:
            UserError: a text does not say what it should.
        """
        return Options(
            samples=self.samples,
            embedded=self.embedded,
            gradient_batches=self.gradient_batches,
            images=None if self.images is None else _numbers(self.images),
            pictures=self.pictures,
        )


def analyze(given: AnalyzeOptions, *, json: bool) -> None:
    """Look into networks, write the report, and show what can be shown in a table."""
    options = given.options()
    out = given.out or _default_out(given.runs)
    _check_out(out)
    subjects = _subjects(given)
    with bar(pieces(subjects)) as observe:
        found = study(subjects, options, data_given=given.dataset is not None, observe=observe)
    page = study_page(found, _command(given))
    make_folder(out)
    write_atomically(out / "report.html", page.encode())
    if given.figures:
        make_folder(out / "figures")
        for name, content in svg_files(found).items():
            write_atomically(out / "figures" / name, content.encode())
    if json:
        print_json({**found.to_plain(), "report": str(out / "report.html")})
        return
    _show(found)
    print(f"{out / 'report.html'}: open it in a browser")


def _show(found: Study) -> None:
    """One table of all networks: what each module is worth by itself."""
    rows = []
    for each in found.findings:
        heads = {(e.module, e.level): e.error for e in each.exits}
        turns = {(g.module, g.level): g.cosine for g in each.gradients}
        scores = {e.module: e.separation.silhouette for e in each.embeddings}
        for probe in each.probes:
            j = probe.module
            final = heads.get((j, "final"))
            rows.append(
                (
                    each.label,
                    f"{j} {probe.name}",
                    f"{probe.error:.1f}",
                    _number(heads.get((j, "independent"), final), 1),
                    _number(heads.get((j, "cascade"), final), 1),
                    _number(turns.get((j, "independent")), 2),
                    _number(turns.get((j, "cascade")), 2),
                    _number(scores.get(j), 3),
                )
            )
    header = (
        "network",
        "module",
        "probe",
        "exit",
        "cascade\nexit",
        "cosine",
        "cascade\ncosine",
        "silhou\u00adette",
    )
    show_table(
        header,
        rows,
        f"{found.data}, at most {found.options.samples} images of each split. Probes and exits: "
        "error in %. Cosines: to backprop's gradient.",
    )


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _subjects(given: AnalyzeOptions) -> list[Subject]:
    labels = None if given.labels is None else split(given.labels, "--labels")
    if labels is not None and len(labels) != len(given.runs):
        raise UserError(
            f"--labels: names {len(labels)} networks, expected one for each of {len(given.runs)}"
        )
    if len(set(given.runs)) < len(given.runs):
        raise UserError("RUN: the same network is named twice; name each once")
    modules = _modules(given.modules)
    found = []
    for index, text in enumerate(given.runs):
        label = labels[index] if labels else None
        found.append(_subject(text, given, modules, label))
    return found if labels else _told_apart(found, given.runs)


def _subject(
    text: str, given: AnalyzeOptions, modules: int | tuple[str, ...] | None, label: str | None
) -> Subject:
    if "=" not in text or Path(text).is_dir():
        if given.image_size is not None:
            raise UserError("--image-size: is for a model's weights; a run has its own")
        return Subject.of_run(Path(text), dataset=given.dataset, modules=modules, label=label)
    model, _, file = text.rpartition("=")
    name, *settings = model.split(",")
    if given.dataset is None:
        raise UserError(f"{text}: a model's weights know no data; name them by --data")
    return Subject.of_weights(
        name,
        _settings(settings),
        Path(file),
        dataset=given.dataset,
        modules=modules,
        image_size=given.image_size,
        label=label,
    )


def _told_apart(subjects: list[Subject], runs: Sequence[str]) -> list[Subject]:
    """Subjects whose labels are alike are called by their seeds too, or by their places."""
    names = [s.label for s in subjects]
    seeded = [
        f"{s.label}, seed {s.seed}" if names.count(s.label) > 1 else s.label for s in subjects
    ]
    told = [
        name if seeded.count(name) == 1 else f"{name} ({run})"
        for name, run in zip(seeded, runs, strict=True)
    ]
    return [s.named(name) for s, name in zip(subjects, told, strict=True)]


def _settings(words: Sequence[str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"{word}: is no setting of a model, expected KEY=VALUE")
        found[key] = parse_yaml(value, word)
    return found


def _modules(text: str | None) -> int | tuple[str, ...] | None:
    if text is None:
        return None
    return int(text) if text.isdecimal() and len(text) < 10 else tuple(split(text, "--modules"))


def _numbers(text: str) -> tuple[int, ...]:
    words = split(text, "--images")
    if not all(word.isdecimal() and len(word) < 10 for word in words):
        raise UserError(f"--images: is {shown(text)}, expected whole numbers such as 3,14,15")
    return tuple(int(word) for word in words)


def _default_out(runs: Sequence[str]) -> Path:
    """The run's own folder; for several, or for weights, a new one below runs/."""
    only = Path(runs[0])
    if len(runs) == 1 and only.is_dir():
        return only / "analysis"
    number = 1
    while (Path("runs") / f"analysis-{number}").exists():
        number += 1
    return Path("runs") / f"analysis-{number}"


def _check_out(out: Path) -> None:
    for folder in (out, *out.parents):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--out: {folder} is a file, expected a folder or a new name")


def _command(given: AnalyzeOptions) -> str:
    """The command that does this."""
    words = ["hpff", "analyze", *given.runs]
    usual = AnalyzeOptions(runs=given.runs)
    for field in dataclasses.fields(given):
        value = getattr(given, field.name)
        if field.name != "runs" and value != getattr(usual, field.name):
            name = "data" if field.name == "dataset" else field.name.replace("_", "-")
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return shlex.join(words)
