"""Pages and charts: whole, escaped, and drawn from whatever numbers come."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpff.analysis.report import charts, page, pixels
from hpff.analysis.report.charts import Series, _ticks
from hpff.analysis.report.run_report import ResultTable, results_page, write_report

NASTY = '<script>alert("1")</script>&\x1b[31m\n'


@given(low=st.floats(-1e6, 1e6), span=st.floats(0, 1e6) | st.just(0.0), whole=st.booleans())
def test_ticks_are_round_and_hold_all_values(low: float, span: float, whole: bool) -> None:
    ticks = _ticks(low, low + span, whole=whole)
    assert 2 <= len(ticks) <= 9
    assert all(b > a for a, b in pairwise(ticks))
    slack = 1e-6 * max(1, abs(low), span)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + span - slack
    if whole:
        assert all(tick == int(tick) for tick in ticks)


@given(
    values=st.lists(
        st.none() | st.floats(-1e9, 1e9) | st.just(math.nan) | st.just(math.inf), max_size=8
    )
)
def test_lines_are_xml_whatever_the_values(values: list[float | None]) -> None:
    drawn = charts.lines([Series("a & b", list(enumerate(values, 1)))], "x", "y", filled=True)
    root = ElementTree.fromstring(f"<div>{drawn}</div>")
    known = [value for value in values if value is not None and math.isfinite(value)]
    assert len(root.findall(".//circle")) == len(known)
    assert "nan" not in drawn
    assert "inf" not in drawn.lower().replace("xlink", "")


def test_an_svg_file_stands_alone() -> None:
    chart = charts.lines([Series("", [(1, 2.0), (2, 3.0)])], "module", "error, %")
    root = ElementTree.fromstring(charts.standalone(chart))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in charts.standalone(chart)
    assert "http" not in charts.standalone(chart).replace("http://www.w3.org/2000/svg", "")


def test_text_of_others_is_escaped() -> None:
    made = results_page(NASTY, NASTY, ResultTable([NASTY], [[NASTY]], [NASTY], NASTY), shown=[])
    assert "<script" not in made
    assert "\x1b" not in made
    assert made.count("&lt;script&gt;") == 7
    chart = charts.lines([Series(NASTY, [(1, 1.0)])], NASTY, NASTY)
    assert "<script" not in chart
    assert "<script" not in page.image(b"", NASTY)
    assert "<script" not in charts.class_legend([NASTY])


def test_a_heatmap_of_many_modules_is_small() -> None:
    values = np.random.default_rng(0).uniform(size=(55, 16)).tolist()
    drawn = charts.heatmap(pixels.matrix(values), (55, 16), "b", "a")
    ElementTree.fromstring(drawn)
    assert len(drawn) < 10_000
    assert ">51<" in drawn


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_colors_run_from_violet_to_yellow(value: float) -> None:
    expected = {0.0: (68, 1, 84), 0.5: (33, 144, 141), 1.0: (253, 231, 37)}[value]
    assert tuple(pixels.colored(np.array([[value]]))[0, 0]) == expected


def test_whatever_fails_only_a_warning_is_left(tmp_path: Path) -> None:
    def make() -> str:
        raise RuntimeError("no\nluck")

    warning = write_report(tmp_path, make)
    assert warning is not None
    assert warning.endswith("report.html: was not written (no luck)")
    assert list(tmp_path.iterdir()) == []
    assert write_report(tmp_path, lambda: "page") is None
    assert (tmp_path / "report.html").read_text() == "page"
