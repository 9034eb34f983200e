from __future__ import annotations

import pytest

from emabench.report import format as say
from emabench.tables.parts import Published
from emabench.tables.statistics import Estimate


@pytest.mark.parametrize(
    ("mean", "half", "text"),
    [
        (13.2491, 3.912, "13 ± 4"),
        (4.9271, 0.1138, "4.93 ± 0.11"),
        (89.1836, 0.2412, "89.18 ± 0.24"),
        (87.2101, 0.3901, "87.2 ± 0.4"),
        (-0.00021, 0.000034, "−0.00021 ± 0.00003"),
        (1234.5, 260.0, "1234 ± 260"),
        (3.5, 0.0, "3.500 ± 0.000"),
        (2.4e-7, 1.2e-9, "2.40e−7 ± 1e−9"),
    ],
)
def test_as_many_digits_as_the_interval_bears(mean: float, half: float, text: str) -> None:
    assert say.measured(Estimate(mean, mean - half, mean + half, 5)) == text


def test_changes() -> None:
    assert say.percent(Estimate(-0.7317, -0.8056, -0.6297, 5)) == "−73% [−81, −63]"
    assert say.percent(Estimate(0.01961, 0.0057, 0.0337, 5)) == "+2.0% [+0.6, +3.4]"
    assert say.percent(Estimate(-0.0002, -0.0007, 0.0003, 5)) == "−0.02% [−0.07, +0.03]"
    assert say.percent(Estimate(-0.38, None, None, 1)) == "−38%"
    assert say.percent(None) == say.measured(None) == "–"
    assert say.changes([-0.7356, -0.6017]) == "−74…−60%"
    assert say.changes([0.0688]) == "+6.9%"
    assert say.changes([]) == ""
    assert say.change(-1.5) == "−150%"


def test_single_numbers() -> None:
    assert [say.number(v) for v in (9.96, 0.98, 12345.6, 0, None, 0.0001236)] == [
        "9.960",
        "0.9800",
        "12346",
        "0",
        "–",
        "0.0001236",
    ]
    assert say.measured(Estimate(12.5, None, None, 1)) == "12.50"
    assert [say.steps(v) for v in (926.4, 10_000, 6.93, None)] == ["926", "10 000", "6.93", "–"]
    assert [say.seconds(v) for v in (71.7, 600, 36_000)] == ["71.7 s", "10 min", "10.0 h"]
    assert say.share(5, 5) == "5" and say.share(4, 5) == "4/5"
    assert say.weight(1e-9) == "0" and say.weight(0.018) == "1.8%"


def test_published_numbers_as_a_range() -> None:
    def numbers(*values: float) -> list[Published]:
        return [Published(metric="fid", value=v, source="s") for v in values]

    assert say.published(numbers(12.14, 8.06)) == "8.06–12.14"
    assert say.published(numbers(3.21, 3.21)) == "3.21"
    assert say.published([]) == ""
