"""Charts as SVG, drawn by hand: they follow the page's colors, light and dark, and stay sharp."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass

from hpff.analysis.report.page import Html, text
from hpff.analysis.report.style import CHART, COLORS, THEME

WIDTH, HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 38


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        label: in the legend; "" leaves it out.
        points: (x, y); a y of None makes a gap.
        color: which, 0 and up.
        dashed: whether the line is.
    """

    label: str
    points: Sequence[tuple[float, float | None]]
    color: int = 0
    dashed: bool = False


def lines(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    from_zero: bool = False,
    marks: bool = True,
    filled: bool = False,
    whole_x: bool = True,
) -> Html:
    """Lines over one x, with a legend.

    Args:
        series: the lines.
        x_label: under the x axis.
        y_label: above the y axis, and in the description.
        from_zero: whether the y axis begins at 0.
        marks: whether points are marked.
        filled: whether the space under the lines is tinted.
        whole_x: whether x is counted in whole numbers.
    """
    known = [(x, y) for one in series for x, y in one.points if y is not None and math.isfinite(y)]
    if not known:
        return Html('<p class="soft">nothing to draw</p>')
    xs, ys = [x for x, _ in known], [y for _, y in known]
    frame = _Frame(
        _ticks(min(xs), max(xs), whole=whole_x),
        _ticks(0 if from_zero else min(ys), max(ys)),
        (min(xs), max(xs)),
    )
    parts = [frame.axes(x_label, y_label)]
    for one in series:
        parts += _drawn(one, frame, marks=marks, filled=filled)
    return Html(_svg(parts, f"{y_label} over {x_label}") + legend(series))


def legend(series: Sequence[Series]) -> str:
    """The names of the lines that have one; nothing for a single line without."""
    items = [
        f'<li><svg viewBox="0 0 22 10" aria-hidden="true"><path class="line s{one.color % COLORS}'
        f'{" dashed" if one.dashed else ""}" d="M0 5H22"/></svg>{text(one.label)}</li>'
        for one in series
        if one.label
    ]
    return f'<ul class="legend">{"".join(items)}</ul>' if items else ""


def scatter(points: Sequence[tuple[float, float]], classes: Sequence[int], described: str) -> Html:
    """Points in the plane, colored by class; the axes have no meaning and are left out."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    side = 160
    scale = (side - 8) / max(max(xs) - min(xs), max(ys) - min(ys), 1e-12)
    middle = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    by_color: dict[int, list[str]] = {}
    for (x, y), label in zip(points, classes, strict=True):
        place = side / 2 + (x - middle[0]) * scale, side / 2 - (y - middle[1]) * scale
        by_color.setdefault(label % COLORS, []).append(f"M{place[0]:.1f} {place[1]:.1f}h0")
    dots = [
        f'<path class="s{color}" d="{"".join(path)}" stroke-width="3.2" stroke-linecap="round" '
        'fill="none" opacity=".75"/>'
        for color, path in sorted(by_color.items())
    ]
    return Html(_svg(dots, described, (side, side)))


def class_legend(names: Sequence[str]) -> Html:
    """The classes and their colors."""
    items = [
        f'<li><svg viewBox="0 0 22 10" aria-hidden="true"><circle class="f{index % COLORS}" '
        f'cx="11" cy="5" r="4.5"/></svg>{text(name)}</li>'
        for index, name in enumerate(names[: 2 * COLORS])
    ]
    more = f"<li>and {len(names) - 2 * COLORS} more</li>" if len(names) > 2 * COLORS else ""
    return Html(f'<ul class="legend">{"".join(items)}{more}</ul>')


def heatmap(png: bytes, shape: tuple[int, int], x_label: str, y_label: str) -> Html:
    """A matrix as a picture of one pixel a cell, with its axes; rows go down.

    Args:
        png: the picture.
        shape: rows, columns.
        x_label: of the columns.
        y_label: of the rows.
    """
    rows, columns = shape
    cell = min(250 / columns, 250 / rows)
    width, height = cell * columns, cell * rows
    left, top = 40, 8
    content = base64.b64encode(png).decode("ascii")
    place = f'x="{left}" y="{top}" width="{width:.1f}" height="{height:.1f}"'
    pixels = 'preserveAspectRatio="none" style="image-rendering: pixelated"'
    parts = [f'<image {place} {pixels} href="data:image/png;base64,{content}"/>']
    for number in _numbered(columns):
        x = left + cell * (number - 0.5)
        parts.append(
            f'<text x="{x:.1f}" y="{top + height + 15:.1f}" text-anchor="middle">{number}</text>'
        )
    for number in _numbered(rows):
        y = top + cell * (number - 0.5) + 4
        parts.append(f'<text x="{left - 6}" y="{y:.1f}" text-anchor="end">{number}</text>')
    parts.append(
        f'<text x="{left + width / 2:.1f}" y="{top + height + 32:.1f}" text-anchor="middle">'
        f"{text(x_label)}</text>"
    )
    middle = top + height / 2
    parts.append(
        f'<text x="12" y="{middle:.1f}" text-anchor="middle" '
        f'transform="rotate(-90 12 {middle:.1f})">{text(y_label)}</text>'
    )
    size = (left + width + 10, top + height + 40)
    return Html(_svg(parts, f"CKA of {y_label} and {x_label}", size))


def standalone(chart: Html, series: Sequence[Series] = ()) -> str:
    """The chart alone, as an SVG file that has its colors with it, and a legend of its lines."""
    svg = chart[: chart.index("</svg>")]
    opening, _, rest = svg.partition(">")
    width, height = (
        float(word) for word in opening.split('viewBox="0 0 ')[1].split('"')[0].split()
    )
    named = [one for one in series if one.label]
    for index, one in enumerate(named):
        y = height + 14 + 17 * index
        dashed = " dashed" if one.dashed else ""
        rest += f'<path class="line s{one.color % COLORS}{dashed}" d="M{_LEFT} {y - 4}h22"/>'
        rest += f'<text x="{_LEFT + 29}" y="{y}">{text(one.label)}</text>'
    tall = height + 17 * len(named) + (8 if named else 0)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {tall:.0f}" '
        f'width="{width:.0f}" height="{tall:.0f}"><style>{THEME}{CHART}</style>'
        f'<rect width="100%" height="100%" fill="var(--paper)"/>{rest}</svg>\n'
    )


class _Frame:
    """Where values lie in a chart."""

    def __init__(
        self, x_ticks: Sequence[float], y_ticks: Sequence[float], x_range: tuple[float, float]
    ) -> None:
        self.x_ticks, self.y_ticks = x_ticks, y_ticks
        self._x0, self._x1 = x_range
        self._y0, self._y1 = y_ticks[0], y_ticks[-1]

    def x(self, value: float) -> float:
        span = self._x1 - self._x0
        share = (value - self._x0) / span if span else 0.5
        return _LEFT + 6 + share * (WIDTH - _LEFT - _RIGHT - 12)

    def y(self, value: float) -> float:
        share = (value - self._y0) / (self._y1 - self._y0)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _BOTTOM - _TOP - 14)

    def axes(self, x_label: str, y_label: str) -> str:
        bottom = HEIGHT - _BOTTOM
        found = [f'<text x="{_LEFT}" y="{_TOP + 2}">{text(y_label)}</text>']
        for tick in self.y_ticks:
            y = self.y(tick)
            found.append(f'<path class="rule" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
            found.append(
                f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>'
            )
        for tick in self.x_ticks:
            if not self._x0 <= tick <= self._x1:
                continue
            x = self.x(tick)
            found.append(f'<path class="axis" d="M{x:.1f} {bottom}v4"/>')
            found.append(
                f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{_short(tick)}</text>'
            )
        found.append(f'<path class="axis" d="M{_LEFT} {bottom}H{WIDTH - _RIGHT}"/>')
        middle = (_LEFT + WIDTH - _RIGHT) / 2
        found.append(
            f'<text x="{middle:.1f}" y="{HEIGHT - 5}" text-anchor="middle">{text(x_label)}</text>'
        )
        return "".join(found)


def _drawn(one: Series, frame: _Frame, *, marks: bool, filled: bool) -> list[str]:
    color = one.color % COLORS
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in one.points:
        if y is None or not math.isfinite(y):
            runs.append([])
        else:
            runs[-1].append((frame.x(x), frame.y(y)))
    parts = []
    for run in filter(None, runs):
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in run)
        if filled:
            floor = HEIGHT - _BOTTOM
            area = f"M{run[0][0]:.1f} {floor}L{path}L{run[-1][0]:.1f} {floor}Z"
            parts.append(f'<path class="area f{color}" d="{area}"/>')
        dashed = " dashed" if one.dashed else ""
        parts.append(f'<path class="line s{color}{dashed}" d="M{path}"/>')
        if marks and len(run) <= 60:
            parts += [
                f'<circle class="f{color}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in run
            ]
    return parts


def _svg(parts: Sequence[str], described: str, size: tuple[float, float] = (WIDTH, HEIGHT)) -> str:
    inside = "".join(parts)
    return (
        f'<svg viewBox="0 0 {size[0]:.0f} {size[1]:.0f}" role="img" '
        f'aria-label="{text(described)}">{inside}</svg>'
    )


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Four to seven round numbers from below the lowest to above the highest value."""
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * max(size, 1e-6):  # As good as constant.
        half = size / 2 if size > 1e-9 else 0.5
        low, high = low - half, low + half
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    if whole:
        step = max(1.0, float(math.ceil(step)))
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [float(f"{step * i:.12g}") for i in range(first, last + 1)]


def _short(value: float) -> str:
    """A tick as short as can be."""
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")
    return f"{value:.10g}"


def _numbered(count: int) -> list[int]:
    """Which of 1..count have room for their number."""
    every = max(1, math.ceil(count / 11))
    return [number for number in range(1, count + 1) if (number - 1) % every == 0]
