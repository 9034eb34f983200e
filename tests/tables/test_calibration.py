"""How often a verdict is false, on fewer simulated tables than `emabench bench verdicts` takes."""

from __future__ import annotations

import pytest

from emabench.bench import verdicts
from emabench.bench.worlds import WORLDS
from emabench.tables.boundary import at_least
from emabench.tables.statistics import ALPHA, Most

BY_NAME = {world.name: world for world in WORLDS}


@pytest.mark.parametrize(
    "world",
    [
        "no effect, skewed", "rare collapse", "equal but for one in ten", "one quantum, all move", "survivors",
        "metric not finite", "shared test set", "steps, some never", "five looks, no effect", "at the limits, normal",
    ],
)  # fmt: skip
def test_at_most_one_table_in_twenty_has_a_false_verdict(world: str) -> None:
    each = BY_NAME[world]
    claims = "all types" if "steps" in world else "four"
    tables = 12 if each.every_n else 60
    found = verdicts.rates(each, claims, 11, tables)
    wrong = round(found.false * tables)
    assert at_least(wrong, tables, 0.999) <= ALPHA, f"{wrong} of {tables}"


def test_clear_effects_are_decided() -> None:
    found = verdicts.rates(BY_NAME["large effect"], "four", 11, tables=30)
    assert found.false == 0 and found.decided > 0.9
    assert verdicts.rates(BY_NAME["large effect"], "four", 5, tables=5).decided == 0, "five seeds are too few"


def test_runs_of_two_versions_decide_nothing() -> None:
    claims = [claim for claim in verdicts.FOUR if claim["over"] == "raw"]
    spec = verdicts.table(claims, (11,))
    rng = verdicts.np.random.default_rng(0)
    judged = verdicts.judge(spec, "small", verdicts.runs(BY_NAME["two versions"].draw(rng, 11)))
    assert {verdict.kind.value for ruling in judged.rulings for verdict in ruling.verdicts.values()} == {
        "not comparable"
    }
    pooled = verdicts.judge(
        spec, "small", verdicts.runs(BY_NAME["two versions"].draw(rng, 11)), pool=["code"]
    )
    assert any(verdict.kind.value == "holds" for r in pooled.rulings for verdict in r.verdicts.values())


def test_the_simulation_would_notice_false_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decided by a bare majority, far more than one table in twenty is wrong."""
    monkeypatch.setattr(Most, "shown", lambda self, level, left=1: self.count > 0.7 * len(self.hits))
    assert verdicts.rates(BY_NAME["no effect, normal"], "four", 11, tables=40).false > 0.2


def test_the_bench_prints_its_figures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts, "WORLDS", WORLDS[:2])
    verdicts.main(["--tables", "2", "--seeds", "5"])
    printed = capsys.readouterr().out
    assert all(world.name in printed for world in WORLDS[:2])
    assert "target ≤ 5 %" in printed and "worst world" in printed
