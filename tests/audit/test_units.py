"""Unit analysis of the printed formulas, and of corrected ones."""

from __future__ import annotations

import math

import pytest

from emabench.audit.catalog import EQUATIONS
from emabench.audit.units import SIDES, Side, Units, dimension, units

LOSS, WEIGHT = (1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0)


def test_every_numbered_equation_but_three_is_analysed() -> None:
    assert {str(number) for number in EQUATIONS} - set(SIDES) == {"46", "59", "102"}


def test_what_is_inconsistent() -> None:
    found = {id for id in SIDES if units(id).startswith("inconsistent")}
    assert found == {
        "18",
        "22",
        "23",
        "32",
        "37",
        "41",
        "42",
        "43",
        "44",
        "45",
        "47",
        "57",
        "58",
        "60",
        "79",
        "85",
        "111",
    }


@pytest.mark.parametrize(
    ("id", "right", "unit"),
    [
        ("18", lambda u: u.loss + u.loss * math.sqrt(0.1), LOSS),
        ("32", lambda u: u.h * u.w**2 + u.eta * u.s2 / (2 - 0.1 * u.eta * u.h), LOSS),
        ("41", lambda u: (u.w**2 + 10 * u.eta**2 * u.s2) / u.eta + u.eta * u.s2, LOSS),
        ("47", lambda u: u.loss / u.eta + u.h * u.eta * u.s2, (2.0, -2.0, 0.0, 0.0)),
        ("55", lambda u: u.w**2 + u.eta * u.s2 / u.h, (0.0, 2.0, 0.0, 0.0)),
        ("58", lambda u: u.eta * u.s2 / (2 - 0.1 * u.eta * u.h), LOSS),
        ("60", lambda u: math.log(3 * u.h * u.w**2 / (u.eta * u.s2)) / (u.eta * u.h), (0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_corrected_forms_are_consistent(id: str, right: Side, unit: tuple[float, ...]) -> None:
    assert dimension(right) == unit


def test_a_sum_of_different_units_has_none() -> None:
    assert dimension(lambda u: u.loss + u.w) is None
    assert dimension(lambda u: u.eta * u.gradient) == WEIGHT
    assert Units(loss=6.0, w=2.0).h == 1.5
