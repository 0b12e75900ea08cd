"""The pictures of a study, each with one sentence on how to read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hpff.analysis.embeddings import Embedding
from hpff.analysis.report import charts, page, pixels
from hpff.analysis.report.charts import Series
from hpff.analysis.report.page import Html
from hpff.analysis.study import Findings, Study

_LEVELS = ("independent", "cascade", "both")


def classifiers(found: Study) -> Html:
    """Linear probes and early exits, module by module."""
    probe = [
        Series(f.label, [(p.module, p.error) for p in f.probes], i)
        for i, f in enumerate(found.findings)
    ]
    figures = [
        page.figure(
            "Linear probes",
            "Test error of a linear classifier on each module's frozen features: a lower line has "
            "features that say more of the classes.",
            charts.lines(probe, "module", "probe error, %"),
        )
    ]
    exits = _by_level(found, lambda f: f.exits, "error", last=True)
    if exits:
        figures.append(
            page.figure(
                "Early exits",
                "Test error of each auxiliary network as a classifier, solid at the independent, "
                "dashed at the cascade level; the last point is the network itself.",
                charts.lines(exits, "module", "error, %"),
            )
        )
    agreeing = _by_level(found, lambda f: f.exits, "agreement")
    if agreeing:
        figures.append(
            page.figure(
                "Patch agreement",
                "How often two patches of an image answer alike, from 0 to 1: higher means that "
                "each patch by itself knows as much.",
                charts.lines(agreeing, "module", "share of pairs that agree"),
            )
        )
    parts = [page.grid(figures), page.folded("Numbers", [_classifier_table(found)])]
    adds = _cascade_adds(found)
    if adds is not None:
        parts.append(adds)
    return page.section(
        "What each module knows",
        "How well the classes can be told from the features of one module alone.",
        parts,
    )


def gradients(found: Study) -> Html | None:
    """Local gradients beside backprop's."""
    if not any(f.gradients for f in found.findings):
        return None
    turns = _by_level(found, lambda f: f.gradients, "cosine")
    ratios = _by_level(found, lambda f: f.gradients, "norm_ratio")
    header = ("network", "module", "level", "cosine", "± over batches", "norm ratio", "norm")
    rows = [
        (
            f.label,
            f"{g.module} {g.name}",
            g.level,
            _number(g.cosine, 3),
            _number(g.cosine_spread, 3),
            _number(g.norm_ratio, 3),
            f"{g.norm:.3g}",
        )
        for f in found.findings
        for g in f.gradients
    ]
    figures = [
        page.figure(
            "Angle to backprop",
            "Cosine between a module's local gradient and backprop's on the same batch, solid at "
            "the independent, dashed at the cascade level: 1 is the same direction, 0 unrelated.",
            charts.lines(turns, "module", "cosine"),
        ),
        page.figure(
            "Size beside backprop",
            "The local gradient's norm over backprop's, each level with weight 1: above 1 the "
            "level pulls harder than backprop would.",
            charts.lines(ratios, "module", "norm ratio", from_zero=True),
        ),
    ]
    batches = found.options.gradient_batches
    said = (
        f"Local gradients of each module's parameters beside those of backprop, the mean over "
        f"{batches} training batches at the trained weights."
    )
    parts = [page.grid(figures), page.folded("Numbers", [page.table(header, rows)])]
    return page.section("Gradient agreement", said, parts)


def similarity(found: Study) -> Html:
    """CKA."""
    figures = []
    for each in found.similarities:
        values = [[min(max(v, 0.0), 1.0) for v in row] for row in each.values]
        shape = len(values), len(values[0])
        picture = charts.heatmap(pixels.matrix(values), shape, each.second, each.first)
        title = each.first if each.first == each.second else f"{each.first} and {each.second}"
        ends = _number(each.values[0][0], 2), _number(each.values[-1][-1], 2)
        said = f"First modules {ends[0]}, last modules {ends[1]}; dark is 0, yellow is 1."
        figures.append(page.figure(title, said, picture))
    bar = page.image(pixels.scale(), "colors from 0 to 1", "pixels scale")
    said = (
        "Linear CKA between modules: yellow where two modules arrange the images alike, whatever "
        "rotates or scales their features; a bright diagonal means that modules of the same depth "
        "have learned the same."
    )
    key = Html(f'<p class="soft">0 {bar} 1</p>')
    return page.section("Similarity", said, [page.grid(figures), key])


def separation(found: Study) -> Html:
    """How far features keep classes apart, and pictures of them."""
    silhouettes, ratios = [], []
    for index, each in enumerate(found.findings):
        scores = [(e.module, e.separation) for e in each.embeddings]
        silhouettes.append(Series(each.label, [(j, s.silhouette) for j, s in scores], index))
        ratios.append(Series(each.label, [(j, s.scatter_ratio) for j, s in scores], index))
    score_figures = [
        page.figure(
            "Silhouette",
            "From -1 to 1: how much nearer a sample's own class is than the next one, in the "
            "features themselves; higher is better separated.",
            charts.lines(silhouettes, "module", "silhouette"),
        ),
        page.figure(
            "Scatter ratio",
            "Scatter between the classes' means over that within the classes; higher is better "
            "separated.",
            charts.lines(ratios, "module", "between over within", from_zero=True),
        ),
    ]
    parts = [page.grid(score_figures), charts.class_legend(found.class_names)]
    parts += _planes(found, "t-SNE", lambda e: e.tsne)
    parts.append(page.folded("PCA", _planes(found, "PCA", lambda e: e.pca)))
    said = (
        f"The features of {found.options.embedded} test images or fewer. In the pictures each dot "
        "is an image, colored by its class: look for clusters of one color; distances between "
        "clusters mean little in t-SNE."
    )
    return page.section("Separation of the classes", said, parts)


def attention(found: Study) -> Html | None:
    """Activation maps and Grad-CAM, all networks' side by side."""
    looking = [(f.label, f.attention) for f in found.findings if f.attention is not None]
    if not looking or not found.numbers:
        return None
    parts = []
    for index, number in enumerate(found.numbers):
        name = found.class_names[int(found.labels[index])]
        rows: list[str] = []
        for label, seen in looking:
            answer = found.class_names[int(seen.answers[index])]
            for kind, maps in (("activation", seen.activations), ("Grad-CAM", seen.for_class)):
                cells = "".join(
                    f"<td>{_map(found, index, each, f'{kind} of module {j}, {label}')}</td>"
                    for j, each in zip(seen.modules, maps, strict=True)
                )
                note = f" (says {answer})" if kind == "activation" else ""
                rows.append(
                    f'<tr><th scope="row">{page.text(label + note)}<br>{kind}</th>{cells}</tr>'
                )
        widest = max((seen.modules for _, seen in looking), key=len)
        heads = "".join(f'<th scope="col">{j}</th>' for j in widest)
        original = page.image(pixels.picture(found.images[index]), f"test image {number}")
        parts.append(
            Html(
                f'<div class="scroll"><table class="maps"><thead><tr><th scope="col">{original}'
                f"{page.text(name)}, test image {number}</th>{heads}</tr></thead>\n<tbody>"
                f"{''.join(rows)}</tbody></table></div>"
            )
        )
    said = (
        "Activation: where a module's activations are large. Grad-CAM: which places, at that "
        "module, speak for the true class in the whole network. Yellow is much, violet little; "
        "columns are modules. Compare the rows of networks with and without patches."
    )
    return page.section("Where the networks look", said, parts)


def _map(found: Study, index: int, maps: Any, described: str) -> Html:
    if maps is None:
        return page.text("–")
    return page.image(pixels.over_image(found.images[index], maps[index].cpu()), described, "map")


def _planes(found: Study, name: str, coordinates: Callable[[Embedding], Any]) -> list[Html]:
    parts: list[Html] = []
    for each in found.findings:
        drawn = [(e, coordinates(e)) for e in each.embeddings if e.tsne is not None]
        figures = [
            page.figure(
                f"module {e.module}",
                f"silhouette {e.separation.silhouette:.3f}",
                charts.scatter(
                    plane.tolist(), e.labels.tolist(), f"{name} of module {e.module}, {each.label}"
                ),
            )
            for e, plane in drawn
        ]
        parts += [page.subheading(f"{name}: {each.label}"), page.grid(figures, small=True)]
    return parts


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


def _classifier_table(found: Study) -> Html:
    header = ("network", "module", "numbers seen", "probe: training", "test", "independent exit",
              "cascade exit", "patches agree: independent", "cascade")  # fmt: skip
    rows = []
    for each in found.findings:
        heads = {(e.module, e.level): e for e in each.exits}
        for p in each.probes:
            own = [heads.get((p.module, level)) for level in ("independent", "cascade")]
            final = heads.get((p.module, "final"))
            errors = [(e or final).error if (e or final) else None for e in own]  # type: ignore[union-attr]
            rows.append(
                (
                    each.label,
                    f"{p.module} {p.name}",
                    str(p.numbers),
                    f"{p.train_error:.2f}",
                    f"{p.error:.2f}",
                    *(_number(error, 2) for error in errors),
                    *(_number(e.agreement if e else None, 3) for e in own),
                )
            )
    return page.table(header, rows)


def _cascade_adds(found: Study) -> Html | None:
    """The cascade exit's error less the independent one's, on the same features."""
    rows = []
    for each in found.findings:
        heads = {(e.module, e.level): e.error for e in each.exits}
        for j in sorted({module for module, _ in heads}):
            alone, cascade = heads.get((j, "independent")), heads.get((j, "cascade"))
            if alone is not None and cascade is not None:
                rows.append(
                    (
                        each.label,
                        str(j),
                        f"{alone:.2f}",
                        f"{cascade:.2f}",
                        f"{cascade - alone:+.2f}",
                    )
                )
    if not rows:
        return None
    header = ("network", "module", "independent exit, %", "cascade exit, %", "difference")
    said = "Both exits read the same features: below 0 the cascade's auxiliary network does better."
    return page.folded("What the cascade adds", [page.paragraph(said), page.table(header, rows)])


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
