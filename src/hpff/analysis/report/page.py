"""The HTML of a report: text is escaped here, and nowhere else is HTML put together from it."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NewType

from hpff.analysis.report.style import CHART, PAGE, THEME
from hpff.errors import one_line

Html = NewType("Html", str)
"""HTML that is whole and safe to put into a page."""


def text(value: object) -> Html:
    """Text as HTML shows it, on one line."""
    return Html(escape(one_line(str(value))))


def block(value: str) -> Html:
    """Lines of text as HTML shows them, each without what moves a cursor."""
    return Html("\n".join(escape(one_line(line)) for line in value.split("\n")))


def joined(parts: Iterable[Html]) -> Html:
    """Pieces of HTML one after another."""
    return Html("\n".join(parts))


def document(title: str, parts: Iterable[Html]) -> str:
    """A whole page."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{text(title)}</title>
<style>
{THEME}{CHART}{PAGE}</style>
</head>
<body>
<main>
{joined(parts)}
</main>
</body>
</html>
"""


def heading(title: str, subtitle: str) -> Html:
    """The top of a page."""
    return Html(f'<h1>{text(title)}</h1>\n<p class="soft">{text(subtitle)}</p>')


def section(title: str, said: str, parts: Iterable[Html]) -> Html:
    """A part of a page, with what is to be said of it."""
    said_html = f"<p>{text(said)}</p>\n" if said else ""
    return Html(f"<section>\n<h2>{text(title)}</h2>\n{said_html}{joined(parts)}\n</section>")


def subheading(title: str) -> Html:
    """The title of a part of a section."""
    return Html(f"<h3>{text(title)}</h3>")


def paragraph(said: str) -> Html:
    """A paragraph."""
    return Html(f"<p>{text(said)}</p>")


def figure(title: str, how_to_read: str, picture: Html) -> Html:
    """A picture, its title, and one sentence on how to read it."""
    caption = f"<figcaption><b>{text(title)}</b>{text(how_to_read)}</figcaption>"
    return Html(f"<figure>{caption}\n{picture}</figure>")


def grid(figures: Iterable[Html], *, small: bool = False) -> Html:
    """Pictures side by side, as many as fit."""
    return Html(f'<div class="grid-of{" small" if small else ""}">\n{joined(figures)}\n</div>')


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    """A table of numbers, the first column of names; it scrolls where it is too wide."""
    head = "".join(f'<th scope="col">{text(cell)}</th>' for cell in header)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return Html(
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n'
        "</tbody>\n</table></div>"
    )


def facts(pairs: Mapping[str, object]) -> Html:
    """Names and values, one under another."""
    rows = "\n".join(
        f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>'
        for name, value in pairs.items()
    )
    return Html(f'<div class="scroll"><table class="facts"><tbody>\n{rows}\n</tbody></table></div>')


def headline(pairs: Mapping[str, str]) -> Html:
    """The few numbers that matter, large."""
    items = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in pairs.items()
    )
    return Html(f'<dl class="numbers">{items}</dl>')


def code(lines: str) -> Html:
    """Lines as a computer takes them."""
    return Html(f'<pre tabindex="0">{block(lines)}</pre>')


def folded(title: str, parts: Iterable[Html]) -> Html:
    """What is seen only when it is asked for."""
    return Html(f"<details><summary>{text(title)}</summary>\n{joined(parts)}\n</details>")


def bullets(lines: Iterable[str]) -> Html:
    """A list."""
    items = "\n".join(f"<li>{text(line)}</li>" for line in lines)
    return Html(f"<ul>\n{items}\n</ul>")


def image(png: bytes, description: str, kind: str = "pixels") -> Html:
    """A picture of pixels, inside the page."""
    content = base64.b64encode(png).decode("ascii")
    return Html(
        f'<img class="{escape(kind)}" alt="{text(description)}" '
        f'src="data:image/png;base64,{content}">'
    )
