"""The report of a study: what modules learn, and the runs that it was found in."""

from __future__ import annotations

import hpff
from hpff.analysis.report import page, runs, study_sections
from hpff.analysis.report.runs import RunFacts
from hpff.analysis.study import Study
from hpff.runs import machine


def study_page(found: Study, command: str) -> str:
    """The whole report as one HTML file.

    Args:
        found: what was found.
        command: that made it.
    """
    trained = [
        RunFacts.read(f.subject.run.path, f.label)
        for f in found.findings
        if f.subject.run is not None
    ]
    names = ", ".join(f.label for f in found.findings)
    sections = [
        study_sections.classifiers(found),
        study_sections.gradients(found),
        study_sections.similarity(found),
        study_sections.separation(found),
        study_sections.attention(found),
        *_of_runs(trained),
    ]
    samples = f"at most {found.options.samples} images of each split of {found.data}"
    parts = [
        page.heading("What the modules learn", f"{names}; {samples}"),
        page.code(command),
        *([_table(trained)] if trained else []),
        *(part for part in sections if part is not None),
        page.section("This analysis", "", [page.facts({**_machine(), "hpff": hpff.__version__})]),
    ]
    return page.document(f"What the modules learn: {names}", parts)


def _of_runs(trained: list[RunFacts]) -> list[page.Html | None]:
    if not trained:
        return []
    return [runs.training(trained), runs.memory(trained), runs.recipe_and_machine(trained)]


def _table(trained: list[RunFacts]) -> page.Html:
    header = ("run", "model", "modules", "epochs", "test error, %", "peak memory", "step time")
    rows = [
        (
            run.label,
            run.recipe.model.name,
            str(runs.run_modules(run)),
            str(run.report["epochs"]),
            f"{run.report['test_error_percent']:.2f}",
            runs.megabytes(run.report["peak_memory_bytes"]),
            f"{1000 * run.report['step_seconds']:.1f} ms",
        )
        for run in trained
    ]
    return page.table(header, rows)


def _machine() -> dict[str, str | int]:
    return machine.describe()
