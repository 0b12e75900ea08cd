"""`hpff evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpff.cli.bars import batch_bar
from hpff.cli.compare import split as split_words
from hpff.cli.evaluate_exits import evaluate_exits
from hpff.cli.tables import print_folded, print_json, show_table
from hpff.data import PUBLISHED_DATASETS, Policy
from hpff.data.classes import Matching
from hpff.errors import UserError, did_you_mean, one_line
from hpff.experiments.segmentation import draw, evaluate_pixels
from hpff.experiments.transfer import transfer
from hpff.runs.finished_run import FinishedRun
from hpff.training.inference import MULTI_SCALE, Inference


@dataclass(frozen=True)
class Views:
    """What the command line said of how a model that segments looks at images."""

    scales: str | None = None
    flip: bool = False
    window: str | None = None
    pictures: Path | None = None

    def options(self) -> list[str]:
        """The options that were given."""
        given = {
            "--scales": self.scales is not None,
            "--flip": self.flip,
            "--window": self.window is not None,
            "--pictures": self.pictures is not None,
        }
        return [option for option, is_given in given.items() if is_given]

    def inference(self) -> Inference:
        """These as settings.

        Raises:
            UserError: a text does not say what it should.
        """
        scales = MULTI_SCALE if self.scales == "published" else _numbers(self.scales or "1")
        window = None if self.window is None else _numbers(self.window)
        if window is not None and (len(window) != 2 or not all(s.is_integer() for s in window)):
            raise UserError(f"--window: is {self.window!r}, expected two sides such as 512,1024")
        sides = None if window is None else (int(window[0]), int(window[1]))
        return Inference(scales, self.flip, sides)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise UserError(f"{text!r}: expected numbers with commas between, such as 0.5,1") from error


def evaluate(
    run: Path,
    dataset: str | None,
    split: str,
    matching: str,
    class_names: str | None,
    treatment: str | None,
    views: Views,
    *,
    exits: bool,
    skip_broken: bool,
    json: bool,
) -> None:
    """Score a run's model, and say how; with ``exits`` its auxiliary networks."""
    found = FinishedRun.read(run)
    of_classes = {"--match": matching != "name", "--class-names": class_names is not None}
    of_classes["--treatment"] = treatment is not None
    for_classes = [option for option, given in of_classes.items() if given]
    if exits:
        other = {"--split": split != "test", "--skip-broken": skip_broken}
        others = [*for_classes, *(o for o, given in other.items() if given), *views.options()]
        if others:
            raise UserError(f"{others[0]}: does not go with --exits; leave out one of the two")
        evaluate_exits(run, dataset, json=json)
        return
    if found.is_dense:
        _refuse(run, for_classes, "classify images")
        _evaluate_pixels(found, dataset, split, views, skip_broken=skip_broken, json=json)
        return
    _refuse(run, views.options(), "segment")
    with batch_bar("testing") as observe:
        result = transfer(
            found,
            dataset,
            split=_one_of(split, ("test", "train"), "--split"),
            matching=_matching(matching),
            class_names=_names(class_names),
            treatment=treatment,
            broken_images="skip" if skip_broken else "stop",
            observe=observe,
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
    print_folded(one_line(f"{run} on {tested}: {result.protocol}"))
    if result.broken_images:
        print(f"{result.broken_images} broken images were left out")


def _evaluate_pixels(
    run: FinishedRun,
    dataset: str | None,
    split: str,
    views: Views,
    *,
    skip_broken: bool,
    json: bool,
) -> None:
    """Score a model that segments: a table of its classes, and pictures where they are wanted."""
    inference = views.inference()
    broken: Policy = "skip" if skip_broken else "stop"
    split = _one_of(split, ("test", "train"), "--split")
    with batch_bar("testing") as observe:
        found = evaluate_pixels(
            run,
            dataset,
            split=split,
            inference=inference,
            broken_images=broken,
            observe=observe,
        )
    if views.pictures is not None:
        draw(run, views.pictures, dataset, split=split, inference=inference, broken_images=broken)
    if json:
        print_json({"run": str(run.path), **found.to_plain()})
        return
    rows = [(name, _percent(iou), _percent(right)) for name, iou, right in found.rows()]
    rows.append(
        ("mean, and all pixels", _percent(found.score.miou), _percent(100 - found.score.error))
    )
    show_table(("class", "IoU, %", "accuracy, %"), rows)
    tested = f"{found.dataset} ({split}, {found.score.images} images)"
    print_folded(one_line(f"{run.path} on {tested}: {found.inference}"))
    if views.pictures is not None:
        print(one_line(f"{views.pictures}: pictures of image, labels and answers"))


def _refuse(run: Path, options: Sequence[str], what: str) -> None:
    if options:
        raise UserError(
            f"{options[0]}: is for models that {what}, and that of {run} does not; leave it out"
        )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _matching(text: str) -> Matching:
    return "position" if _one_of(text, ("name", "position"), "--match") == "position" else "name"


def _one_of(text: str, known: Sequence[str], option: str) -> str:
    if text not in known:
        hint = did_you_mean(text, known)
        raise UserError(f"{option}: is {text!r}, expected {' or '.join(known)}{hint}")
    return text


def _names(text: str | None) -> Sequence[str] | None:
    """A data set's name stands for its class names."""
    if text is None:
        return None
    if text in PUBLISHED_DATASETS and PUBLISHED_DATASETS[text].class_names:
        return PUBLISHED_DATASETS[text].class_names
    return split_words(text, "--class-names")
