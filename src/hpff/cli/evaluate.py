"""`hpff evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpff.cli.compare import split as split_words
from hpff.cli.tables import print_json, show_table
from hpff.data import PUBLISHED_DATASETS
from hpff.data.classes import Matching
from hpff.errors import UserError, one_line
from hpff.experiments.transfer import transfer
from hpff.runs.finished_run import FinishedRun


def evaluate(
    run: Path,
    dataset: str | None,
    split: str,
    matching: str,
    class_names: str | None,
    treatment: str | None,
    *,
    skip_broken: bool,
    json: bool,
) -> None:
    """Score a run's model, and say how."""
    found = FinishedRun.read(run)
    result = transfer(
        found,
        dataset,
        split=_one_of(split, ("test", "train"), "--split"),
        matching=_matching(matching),
        class_names=_names(class_names),
        treatment=treatment,
        broken_images="skip" if skip_broken else "stop",
    )
    if json:
        print_json({"run": str(run), **result.to_plain()})
        return
    plain = result.to_plain()
    rows = [
        (name, _percent(plain[f"{key}_error_percent"]), _percent(plain[f"{key}_accuracy_percent"]))
        for name, key in (("top-1", "top1"), ("top-5", "top5"))
    ]
    show_table(("", "error, %", "accuracy, %"), rows)
    tested = f"{result.dataset} ({split}, {result.score.images} images)"
    print(one_line(f"{run} on {tested}: {result.protocol}"))
    if result.broken_images:
        print(f"{result.broken_images} broken images were left out")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _matching(text: str) -> Matching:
    return "position" if _one_of(text, ("name", "position"), "--match") == "position" else "name"


def _one_of(text: str, known: Sequence[str], option: str) -> str:
    if text not in known:
        raise UserError(f"{option}: is {text!r}, expected {' or '.join(known)}")
    return text


def _names(text: str | None) -> Sequence[str] | None:
    """A data set's name stands for its class names."""
    if text is None:
        return None
    if text in PUBLISHED_DATASETS and PUBLISHED_DATASETS[text].class_names:
        return PUBLISHED_DATASETS[text].class_names
    return split_words(text, "--class-names")
