"""The charts of a study: for its report, and each as an SVG file of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hpff.analysis.report import charts, page, pixels
from hpff.analysis.report.charts import Series
from hpff.analysis.report.page import Html
from hpff.analysis.study import Findings, Study


@dataclass(frozen=True)
class Chart:
    """A chart, and one sentence on how to read it.

    Attributes:
        name: of its file.
        series: its lines, for a legend.
    """

    name: str
    title: str
    said: str
    drawn: Html
    series: tuple[Series, ...] = ()

    def figure(self) -> Html:
        """The chart in a page."""
        return page.figure(self.title, self.said, self.drawn)

    def file(self) -> str:
        """The chart as an SVG file."""
        return charts.standalone(self.drawn, self.series)


def svg_files(found: Study) -> dict[str, str]:
    """Every chart of a study as an SVG file, by the file's name."""
    shown = [*knowledge(found), *gradients(found), *similarity(found), *separation(found)]
    shown += [chart for plane in planes(found, "t-SNE").values() for chart in plane]
    return {f"{chart.name}.svg": chart.file() for chart in shown}


def knowledge(found: Study) -> list[Chart]:
    """How well the classes can be told from each module: probes, exits, patch agreement."""
    probes = _of_all(found, lambda f: [(p.module, p.error) for p in f.probes])
    shown = [
        _lines(
            "probes",
            "Linear probes",
            "Test error of a linear classifier on each module's frozen features: a lower line has "
            "features that say more of the classes.",
            probes,
            "probe error, %",
        )
    ]
    exits = _by_level(found, lambda f: f.exits, "error", last=True)
    if exits:
        shown.append(
            _lines(
                "exits",
                "Early exits",
                "Test error of each auxiliary network as a classifier, solid at the independent, "
                "dashed at the cascade level; the last point is the network itself.",
                exits,
                "error, %",
            )
        )
    agreeing = _by_level(found, lambda f: f.exits, "agreement")
    if agreeing:
        shown.append(
            _lines(
                "patch-agreement",
                "Patch agreement",
                "How often two patches of an image answer alike, from 0 to 1: higher means that "
                "each patch by itself knows as much.",
                agreeing,
                "share of pairs that agree",
            )
        )
    return shown


def gradients(found: Study) -> list[Chart]:
    """Local gradients beside backprop's; none where no network has any."""
    turns = _by_level(found, lambda f: f.gradients, "cosine")
    ratios = _by_level(found, lambda f: f.gradients, "norm_ratio")
    if not turns:
        return []
    return [
        _lines(
            "gradient-cosine",
            "Angle to backprop",
            "Cosine between a module's local gradient and backprop's on the same batch, solid at "
            "the independent, dashed at the cascade level: 1 is the same direction, 0 unrelated.",
            turns,
            "cosine",
        ),
        _lines(
            "gradient-norm",
            "Size beside backprop",
            "The local gradient's norm over backprop's, each level with weight 1: above 1 the "
            "level pulls harder than backprop would.",
            ratios,
            "norm ratio",
            from_zero=True,
        ),
    ]


def similarity(found: Study) -> list[Chart]:
    """CKA between modules, a picture for each pair of networks."""
    shown = []
    for each in found.similarities:
        values = [[min(max(v, 0.0), 1.0) for v in row] for row in each.values]
        shape = len(values), len(values[0])
        picture = charts.heatmap(pixels.matrix(values), shape, each.second, each.first)
        title = each.first if each.first == each.second else f"{each.first} and {each.second}"
        said = (
            f"First modules {each.values[0][0]:.2f}, last modules {each.values[-1][-1]:.2f}; "
            "dark is 0, yellow is 1."
        )
        shown.append(Chart(_file_name("cka", each.first, each.second), title, said, picture))
    return shown


def separation(found: Study) -> list[Chart]:
    """How far features keep the classes apart."""
    silhouettes = _of_all(
        found, lambda f: [(e.module, e.separation.silhouette) for e in f.embeddings]
    )
    ratios = _of_all(
        found, lambda f: [(e.module, e.separation.scatter_ratio) for e in f.embeddings]
    )
    return [
        _lines(
            "silhouette",
            "Silhouette",
            "From -1 to 1: how much nearer a sample's own class is than the next one, in the "
            "features themselves; higher is better separated.",
            silhouettes,
            "silhouette",
        ),
        _lines(
            "scatter-ratio",
            "Scatter ratio",
            "Scatter between the classes' means over that within the classes; higher is better "
            "separated.",
            ratios,
            "between over within",
            from_zero=True,
        ),
    ]


def planes(found: Study, name: str) -> dict[str, list[Chart]]:
    """By network, the modules' features in the plane.

    Args:
        found: the study.
        name: "t-SNE" or "PCA".
    """
    shown: dict[str, list[Chart]] = {}
    for each in found.findings:
        for e in each.embeddings:
            if e.tsne is None:
                continue
            plane = e.tsne if name == "t-SNE" else e.pca
            described = f"{name} of module {e.module}, {each.label}"
            drawn = charts.scatter(plane.tolist(), e.labels.tolist(), described)
            file = _file_name(name, each.label, f"module {e.module}")
            said = f"silhouette {e.separation.silhouette:.3f}"
            chart = Chart(file, f"module {e.module}", said, drawn)
            shown.setdefault(each.label, []).append(chart)
    return shown


def _lines(
    name: str,
    title: str,
    said: str,
    series: Sequence[Series],
    y_label: str,
    *,
    from_zero: bool = False,
) -> Chart:
    """A chart over the modules."""
    drawn = charts.lines(series, "module", y_label, from_zero=from_zero)
    return Chart(name, title, said, drawn, tuple(series))


def _of_all(
    found: Study, points: Callable[[Findings], Sequence[tuple[float, float | None]]]
) -> list[Series]:
    """A line for each network."""
    return [Series(f.label, points(f), index) for index, f in enumerate(found.findings)]


def _by_level(
    found: Study, of: Callable[[Findings], Sequence[Any]], key: str, *, last: bool = False
) -> list[Series]:
    """A line for each network and level: solid the independent one, dashed the cascade's.

    ``last`` joins the model's own head to both.
    """
    series = []
    for index, each in enumerate(found.findings):
        values = of(each)
        for level in ("independent", "cascade"):
            own = [(v.module, getattr(v, key)) for v in values if v.level == level]
            if not any(y is not None for _, y in own):
                continue
            if last:
                own += [(v.module, getattr(v, key)) for v in values if v.level == "final"]
            label = f"{each.label}, {level}"
            series.append(Series(label, own, index, dashed=level == "cascade"))
    return series


def _file_name(*words: str) -> str:
    """Words as a file's name."""
    plain = [re.sub(r"[^A-Za-z0-9.+]+", "-", word).strip("-.").lower() for word in words]
    return "-".join(word for word in plain if word)[:120]
