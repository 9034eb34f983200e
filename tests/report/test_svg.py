from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emabench.report.html import figure_style
from emabench.report.svg import WIDTH, Axis, Figure, standalone

SVG = "{http://www.w3.org/2000/svg}"
VALUES = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6)


@given(st.lists(VALUES, min_size=1, max_size=6))
def test_an_axis_shows_its_values_and_has_ticks_inside(values: list[float]) -> None:
    axis = Axis.around(values)
    assert all(0 <= axis.share(value) <= 1 for value in values)
    ticks = axis.ticks()
    assert ticks and all(-1e-9 <= axis.share(tick) <= 1 + 1e-9 for tick in ticks)
    assert len(ticks) <= 12


@given(st.lists(st.floats(1e-4, 1e6), min_size=1, max_size=6))
def test_a_logarithmic_axis_does_too(values: list[float]) -> None:
    axis = Axis.around(values, log=True)
    assert all(-1e-9 <= axis.share(value) <= 1 + 1e-9 for value in values)
    ticks = axis.ticks()
    assert ticks and all(-1e-9 <= axis.share(tick) <= 1 + 1e-9 for tick in ticks)


def test_equal_ratios_are_equal_distances() -> None:
    axis = Axis(1, 10_000, log=True)
    assert [axis.share(10.0**i) for i in range(5)] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert axis.ticks() == [1, 10, 100, 1000, 10_000]


def test_a_figure_is_sound_xml_and_escapes_what_it_is_told() -> None:
    figure = Figure(Axis(0, 10), Axis(0, 1))
    figure.axes("steps & more", "<FID>")
    figure.line([(0, 0), (10, 1)], "measured")
    figure.dot(5, 0.5, "measured", 'a "tip" <here>')
    root = ET.fromstring(figure.svg('a "title" & <more>'))
    texts = [
        "".join(element.itertext()) for element in root.iter() if element.tag in (f"{SVG}text", f"{SVG}title")
    ]
    assert "<FID>" in texts and "steps & more" in texts and 'a "tip" <here>' in texts
    assert root.get("aria-label") == 'a "title" & <more>'
    dot = next(element for element in root.iter(f"{SVG}circle"))
    assert float(dot.get("cx", 0)) == pytest.approx(
        figure.left + (WIDTH - figure.left - figure.right) / 2, abs=0.06
    )
    assert "style=" not in figure.svg("x") and "fill=" not in figure.svg("x"), "colours are the page's"


def test_a_figure_of_its_own_holds_its_colours() -> None:
    figure = Figure(Axis(0, 10), Axis(0, 1))
    figure.dot(5, 0.5, "measured", seed=103)
    text = standalone(figure.svg("x"), figure_style())
    root = ET.fromstring(text)
    assert (root.get("width"), root.get("height")) == ("440", "284")
    assert "var(" not in text, "drawing programs know no variables"
    assert "svg .dot.measured { fill: #1f5fa8; }" in text
    assert next(root.iter(f"{SVG}circle")).get("data-seed") == "103"
