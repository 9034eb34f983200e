"""How often a verdict is false, on fewer simulated tables than `emabench bench verdicts` takes."""

from __future__ import annotations

import pytest

from emabench.bench import verdicts
from emabench.tables.statistics import ALPHA
from emabench.tables.verdict import Kind

WORLDS = {truth.name: truth for truth in verdicts.TRUTHS}


@pytest.mark.parametrize(
    "world",
    [
        "no effect, normal", "no effect, heavy", "no effect, skewed",
        "at the limits, normal", "at the limits, skewed", "at the limits, rare",
    ],
)  # fmt: skip
def test_at_most_one_table_in_twenty_has_a_false_verdict(world: str) -> None:
    found = [verdicts.rates(WORLDS[world], seeds, tables=150) for seeds in (5, 8)]
    assert sum(each.false for each in found) / 2 <= ALPHA


def test_effects_that_are_there_are_found() -> None:
    few, more = (verdicts.rates(WORLDS["large effect, normal"], seeds, tables=60) for seeds in (5, 10))
    assert few.false == more.false == 0
    assert few.decided > 0.5
    assert more.decided > 0.85
    assert more.kinds[Kind.REPRODUCED] > few.kinds[Kind.REPRODUCED]


def test_the_simulation_would_notice_false_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged claim by claim at 20 % without the exact test, far more than one table in twenty is wrong."""
    from emabench.tables import judge, statistics

    monkeypatch.setattr(statistics, "p_above", statistics.t_above)
    monkeypatch.setattr(judge, "holm", lambda sides: {s for side in sides for s in side if s.p <= 0.2})
    assert verdicts.rates(WORLDS["no effect, normal"], 5, tables=60).false > 0.3


def test_the_bench_prints_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    verdicts.main(["--tables", "2", "--seeds", "5"])
    printed = capsys.readouterr().out
    assert all(truth.name in printed for truth in verdicts.TRUTHS)
    assert "target ≤ 5%" in printed
