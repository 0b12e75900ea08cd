"""A reproduced table beside the paper's numbers: as text, Markdown, JSON and a picture."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hpff
from hpff.errors import one_line
from hpff.experiments import provenance
from hpff.experiments.columns import COLUMNS
from hpff.experiments.paper_tables import PaperTable
from hpff.experiments.reproduction import Result
from hpff.runs import machine
from hpff.runs.atomic_files import make_folder, write_atomically

_LAST_EPOCH = (
    "Ours is the last epoch's error, never the best epoch's; the published codes report the best."
)


def header(table: PaperTable) -> tuple[str, ...]:
    """The titles of the columns."""
    columns = ["run", "seeds"]
    for measure in table.measures:
        columns += [f"{COLUMNS[measure].title}: paper", "ours", "difference"]
    return tuple(columns)


def cells(table: PaperTable, results: Sequence[Result]) -> list[tuple[str, ...]]:
    """One tuple of texts a row, under `header`."""
    return [_cells(table, result) for result in results]


def notes(table: PaperTable, results: Sequence[Result], faults: Sequence[str] = ()) -> list[str]:
    """What a reader must know of the numbers: how they differ from the published runs first."""
    lines = _deviations(results)
    lines += provenance.lines({result.row.name: result.settings for result in results})
    if {"error", "top5", "accuracy"} & set(table.measures):
        lines.append(_LAST_EPOCH)
    if "miou" in table.measures:
        lines.append("mIoU is that of the last iteration, on whole images.")
    if any(len(result.seeds) > 1 for result in results):
        lines.append("Mean ± standard deviation over the seeds.")
    sources = sorted({source for result in results for source in _memory_sources(table, result)})
    lines += [f"Memory: {'; '.join(sources)}."] if sources else []
    lines.append(f"Paper: {table.source}.")
    unfinished = [result.row.name for result in results if not result.runs]
    lines += [f"Not finished: {', '.join(unfinished)}."] if unfinished else []
    lines += [f"Failed: {fault}" for fault in faults]
    return lines


def as_json(
    table: PaperTable, results: Sequence[Result], command: str, faults: Sequence[str] = ()
) -> dict[str, Any]:
    """All numbers, with each run's recipe, machine and versions."""
    return {
        "table": table.name,
        "title": table.title,
        "command": command,
        "notes": notes(table, results, faults),
        "rows": [_row_as_json(table, result) for result in results],
        "machine": machine.describe(),
        "hpff": hpff.__version__,
    }


def as_markdown(
    table: PaperTable, results: Sequence[Result], command: str, faults: Sequence[str] = ()
) -> str:
    """The table, the notes and the machines of its runs."""
    columns = header(table)
    lines = [columns, ("---",) + ("---:",) * (len(columns) - 1), *cells(table, results)]
    text = "\n".join("| " + " | ".join(map(one_line, line)) + " |" for line in lines)
    remarks = [*notes(table, results, faults), *_machines(results)]
    listed = "\n".join(f"- {one_line(line)}" for line in remarks)
    return f"# {one_line(table.title)}\n\n    {one_line(command)}\n\n{text}\n\n{listed}\n"


def write(
    folder: Path,
    table: PaperTable,
    results: Sequence[Result],
    command: str,
    faults: Sequence[str] = (),
    *,
    picture: bool,
) -> None:
    """Put TABLE.md, TABLE.json and, if asked for, TABLE.png into the folder."""
    make_folder(folder)
    markdown = as_markdown(table, results, command, faults)
    write_atomically(folder / f"{table.name}.md", markdown.encode())
    content = json.dumps(as_json(table, results, command, faults), indent=2) + "\n"
    write_atomically(folder / f"{table.name}.json", content.encode())
    if picture:
        write_atomically(folder / f"{table.name}.png", as_picture(table, results))


def as_picture(table: PaperTable, results: Sequence[Result]) -> bytes:
    """A PNG: for each measure ours (dots, with spreads) and the paper's (circles), and the curves.

    The curves are the test errors of each run's epochs, if any run was trained.
    """
    from matplotlib.figure import Figure

    panels = len(table.measures) + any(result.curves for result in results)
    height = 2 + 0.3 * len(results)
    figure = Figure(figsize=(2 + 4 * panels, height), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for axis, measure in zip(axes, table.measures, strict=False):
        _draw_measure(axis, measure, results, names=axis is axes[0])
    if panels > len(table.measures):
        for index, result in enumerate(results):
            for number, (epochs, errors) in enumerate(result.curves):
                label = result.row.name.rpartition("/")[2] if number == 0 else None
                axes[-1].plot(epochs, errors, ".-", color=f"C{index % 10}", label=label)
        axes[-1].set(xlabel="epoch", ylabel="test error, %", title="our curves")
        axes[-1].grid(alpha=0.3)
        axes[-1].legend(fontsize="x-small")
    changed = any(result.deviations for result in results)
    figure.suptitle(table.title + (f" (not as published: see {table.name}.md)" if changed else ""))
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
    return file.getvalue()


def _draw_measure(axis: Any, measure: str, results: Sequence[Result], *, names: bool) -> None:
    places = range(len(results))
    for place, result in zip(places, results, strict=True):
        paper, mean = result.row.paper.get(measure), result.mean(measure)
        if paper is not None:
            axis.plot(paper, place, "o", color="black", markerfacecolor="none")
        if mean is not None:
            axis.errorbar(mean, place, xerr=result.spread(measure) or 0.0, fmt="o", color="C0")
    labels = [result.row.name.rpartition("/")[2] for result in results] if names else []
    axis.set_yticks(list(places), labels) if names else axis.set_yticks([])
    axis.invert_yaxis()
    axis.set_ylim(len(results) - 0.5, -0.5)
    axis.set(xlabel=COLUMNS[measure].title, title="dots: ours, circles: the paper")
    axis.grid(axis="x", alpha=0.3)


def _cells(table: PaperTable, result: Result) -> tuple[str, ...]:
    texts = [result.row.name, ", ".join(map(str, result.seeds)) or "–"]
    for name in table.measures:
        measure, spread = COLUMNS[name], result.spread(name)
        ours = measure.shown(result.mean(name))
        texts += [
            measure.shown(result.row.paper.get(name)),
            ours if spread is None else f"{ours} ± {measure.shown(spread)}",
            measure.shown(result.difference(name), sign=True),
        ]
    return tuple(texts)


def _deviations(results: Sequence[Result]) -> list[str]:
    """What the runs have changed in their recipes; of published settings first."""
    if not any(result.deviations for result in results):
        return ["As in the recipes: no setting differs."]
    lines = []
    for words, picked in (
        ("Not as published", [_split(result)[0] for result in results]),
        ("Not as in the recipes", [_split(result)[1] for result in results]),
    ):
        shared = [text for text in picked[0] if all(text in other for other in picked)]
        lines += [f"{words}: {', '.join(shared)}."] if shared else []
        for result, texts in zip(results, picked, strict=True):
            own = [text for text in texts if text not in shared]
            short = words[0].lower() + words[1:]
            lines += [f"{result.row.name}, {short}: {', '.join(own)}."] if own else []
    return lines


def _split(result: Result) -> tuple[list[str], list[str]]:
    """Deviations from what was published, and from what is ours or of unknown origin."""
    published: list[str] = []
    others: list[str] = []
    for text in result.deviations:
        key = text.partition(" ")[0]
        ours = any(s.ours for k, s in result.settings.items() if k in (key, f"{key}.name"))
        (published if result.has_sources and not ours else others).append(text)
    return published, others


def _memory_sources(table: PaperTable, result: Result) -> list[str]:
    if "step_memory" in table.measures:
        return ["a step's tensors, counted without a device"]
    if "memory" not in table.measures:
        return []
    words = {
        "counted": "a step's tensors, counted one by one",
        "allocator": "the CUDA allocator's peak without the data set",
    }
    return [words[run.report["peak_memory_source"]] for run in result.runs]


def _machines(results: Sequence[Result]) -> list[str]:
    """One line for each machine that some run was trained on."""
    lines: dict[str, None] = {}
    for result in results:
        for run in result.runs:
            where = run.report.get("machine") or machine.describe()
            lines["Machine: " + ", ".join(f"{key} {value}" for key, value in where.items())] = None
    return [f"{line}, hpff {hpff.__version__}." for line in lines]


def _row_as_json(table: PaperTable, result: Result) -> dict[str, Any]:
    return {
        "run": result.row.name,
        "recipe": result.row.recipe,
        "seeds": list(result.seeds),
        "deviations": list(result.deviations),
        "sources": {key: setting.source for key, setting in result.settings.items()},
        "measures": {
            name: {
                "paper": result.row.paper.get(name),
                "ours": result.mean(name),
                "spread": result.spread(name),
                "difference": result.difference(name),
                "values": list(result.values[name]),
            }
            for name in table.measures
        },
        "runs": [
            {
                "seed": run.recipe.seed,
                "folder": str(run.path),
                "best_test_error_percent": run.report.get("best_test_error_percent"),
                "machine": run.report.get("machine"),
                "resolved_recipe": run.recipe.to_plain(),
            }
            for run in result.runs
        ],
    }
