"""How verdicts, claims and trainings are worded."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from emabench.report import words
from emabench.tables import spec
from emabench.tables.judge import Judged, judge
from emabench.tables.provenance import Since
from emabench.tables.verdict import Effect, Kind, Verdict

FEW = Effect("", [-0.1] * 8, relative=False, higher=False, seeds=range(100, 108))


def test_every_verdict_has_a_mark_of_its_own_and_a_meaning() -> None:
    assert set(words.MARKS) == set(words.MEANINGS) == set(Kind)
    assert len(set(words.MARKS.values())) == len(Kind)


@pytest.mark.parametrize("kind", list(Kind))
def test_reproduced_and_contradicted_are_of_the_published_setting(kind: Kind) -> None:
    verdict = Verdict(kind, part="direction seen, size open", size="1%")
    small, paper = (words.label(verdict, stand_in) for stand_in in (True, False))
    assert "reproduced" not in small and "contradicted" not in small
    assert ("in the stand-in" in small) == (kind in words.STAND_IN)
    assert "stand-in" not in paper
    assert words.label(Verdict(Kind.NO_EFFECT, size="1%"), True) == "no effect above 1% in the stand-in"


def test_what_restricts_a_verdict_is_beside_it(ddpm: Judged) -> None:
    ruling = next(r for r in ddpm.rulings if r.verdicts["article"].kind is Kind.HOLDS)
    verdict = ruling.verdicts["article"]
    assert words.verdict(verdict, ddpm, ruling) == "✓ seen in the stand-in (exploratory)"
    late = replace(ruling, after_data=True, since=Since("a" * 40, "2026-01-02"))
    planned = replace(ddpm, exploratory=())
    assert words.verdict(verdict, planned, late) == "✓ seen in the stand-in (chosen after seeing data)"
    assert words.since(late) == "stands since aaaaaaaaaaaa (2026-01-02)"
    assert words.verdict(Verdict(Kind.UNDECIDED), ddpm, late) == "? undecided"


def test_what_it_would_take(ddpm: Judged) -> None:
    ruling = ddpm.rulings[0]
    assert words.reason(Verdict(Kind.UNDECIDED, seeds=39.0), ddpm, ruling) == (
        "a plan of about 39 seeds would decide, at the shares seen so far"
    )
    assert "no number of seeds" in words.reason(Verdict(Kind.UNDECIDED, seeds=math.inf), ddpm, ruling)
    short = replace(ddpm, exploratory=())
    early = replace(ruling, seeds=[100, 101])
    planned = ddpm.table.plan("small").looks[0]
    assert words.reason(Verdict(Kind.UNDECIDED), short, early) == f"2 of the {planned} seeds planned"


def test_the_next_seed_and_the_worst() -> None:
    text = words.tail(FEW)
    assert "8 of 8 seeds better; a new seed is better with at least 69 % (95 %)" in text
    assert "none of 8 went the other way: up to 31 % still may" in text
    odd = Effect("", [-0.1] * 9 + [3.0], relative=False, higher=False, seeds=range(100, 110))
    assert "worst seed 109: +3" in words.tail(odd)
    assert "the mean goes the other way than most seeds" in words.effect(odd)
    assert "other way" not in words.effect(FEW)
    lost = Effect("", [-0.1] * 9 + [math.inf], relative=False, higher=False, seeds=range(100, 110))
    assert "worst seed 109: no number" in words.tail(lost)


def test_an_overview_says_its_own_error_rate() -> None:
    assert "of 8 tables expect at most 0.4 with one" in words.overview(8)


@pytest.mark.parametrize("name", spec.names())
def test_a_stand_in_says_what_it_is(name: str) -> None:
    table = spec.load(name)
    judged = judge(table, "small", {arm: {100: None} for arm in table.arms})
    header = words.header(judged)
    if table.stand_in("small"):
        assert "a stand-in" in header
        assert table.titled("small") != table.titled("paper"), "a title names what was run"
        assert table.trained["small"] in header
        for published in ("ImageNet", "CIFAR", "ResNet-50", "BERT-base"):
            assert published not in table.titled("small").replace("stand-in for", "").partition("(")[0]


def test_a_control_is_named_with_its_verdict(classifiers: Judged) -> None:
    text = words.control(classifiers)
    assert text == (
        "Positive control: At a constant rate EMA 0.999 is better than SGD: ✓ seen in the stand-in (exploratory)"
    )
    assert words.control(replace(classifiers, scale="paper")) == ""
    moco = spec.load("moco_imagenet100")
    judged = judge(moco, "small", {arm: {100: None} for arm in moco.arms})
    assert words.baselines(judged) == "Baselines: encoder not trained; memory bank, no key encoder"


def test_the_answer_is_the_verdicts_on_the_claims_that_answer(classifiers: Judged) -> None:
    assert words.answer(classifiers).startswith("EMA 0.999 is better than an annealed SGD: ")
    assert (
        "; At a constant rate EMA 0.999 is better than SGD: seen in the stand-in (exploratory), +"
        in words.answer(classifiers)
    )
    nothing = judge(classifiers.table, "small", {arm: {100: None} for arm in classifiers.table.arms})
    assert words.answer(nothing) == "Not run yet."
    own = replace(classifiers, table=classifiers.table.model_copy(update={"answers": []}))
    assert [r.claim.text for r in words.answering(own)] == [c.text for c in classifiers.table.claims[:2]]


def test_an_undecided_answer_gives_the_count_alone(ddpm: Judged) -> None:
    ruling = next(r for r in ddpm.rulings if r.claim.text == ddpm.table.answers[0])
    open_ = replace(ruling, verdicts={"article": Verdict(Kind.UNDECIDED)})
    rulings = [open_ if r is ruling else r for r in ddpm.rulings]
    assert words.answer(replace(ddpm, rulings=rulings)) == (
        "How far β = 0.9999 lowers FID: undecided, better in 11 of 12 seeds."
    ), "an interval that excludes zero beside it would be read as a verdict"


def test_a_page_says_what_had_been_seen_before_its_claims(ddpm: Judged) -> None:
    planned = replace(ddpm, exploratory=())
    assert words.error_rate(planned).endswith(
        "false. The claims were written after seeing pilot runs on seeds 0 to 4."
    )
    assert "at most 5 %" in words.error_rate(planned)
    outside = words.error_rate(replace(ddpm, exploratory=["steps=100 is not in the plan"]))
    assert "at most 5 %" not in outside and "without a known chance of false verdicts: steps=100" in outside
    late = replace(planned, rulings=[replace(planned.rulings[0], after_data=True)])
    assert "those chosen after seeing data left aside" in words.error_rate(late)
