"""The pictures of a study, each with one sentence on how to read it."""

from __future__ import annotations

from typing import Any

from hpff.analysis.report import charts, page, pixels, study_charts
from hpff.analysis.report.page import Html
from hpff.analysis.study import Study


def classifiers(found: Study) -> Html:
    """Linear probes and early exits, module by module."""
    parts = [
        page.grid(chart.figure() for chart in study_charts.knowledge(found)),
        page.folded("Numbers", [_classifier_table(found)]),
    ]
    adds = _cascade_adds(found)
    if adds is not None:
        parts.append(adds)
    said = "How well the classes can be told from the features of one module alone."
    return page.section("What each module knows", said, parts)


def gradients(found: Study) -> Html | None:
    """Local gradients beside backprop's."""
    shown = study_charts.gradients(found)
    if not shown:
        return None
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
    said = (
        "Local gradients of each module's parameters beside those of backprop, the mean over "
        f"{found.options.gradient_batches} training batches at the trained weights."
    )
    figures = page.grid(chart.figure() for chart in shown)
    numbers = page.folded("Numbers", [page.table(header, rows)])
    return page.section("Gradient agreement", said, [figures, numbers])


def similarity(found: Study) -> Html:
    """CKA."""
    bar = page.image(pixels.scale(), "colors from 0 to 1", "pixels scale")
    said = (
        "Linear CKA between modules: yellow where two modules arrange the images alike, whatever "
        "rotates or scales their features; a bright diagonal means that modules of the same depth "
        "have learned the same."
    )
    key = Html(f'<p class="soft">0 {bar} 1</p>')
    figures = page.grid(chart.figure() for chart in study_charts.similarity(found))
    return page.section("Similarity", said, [figures, key])


def separation(found: Study) -> Html:
    """How far features keep classes apart, and pictures of them."""
    parts = [
        page.grid(chart.figure() for chart in study_charts.separation(found)),
        charts.class_legend(found.class_names),
        *_planes(found, "t-SNE"),
        page.folded("PCA", _planes(found, "PCA")),
    ]
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


def _planes(found: Study, name: str) -> list[Html]:
    parts: list[Html] = []
    for label, shown in study_charts.planes(found, name).items():
        figures = page.grid((chart.figure() for chart in shown), small=True)
        parts += [page.subheading(f"{name}: {label}"), figures]
    return parts


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
