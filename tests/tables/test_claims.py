"""Every kind of claim, with values that make every verdict true, judged through a whole table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from emabench.tables.claim import Measured
from emabench.tables.claims.steps import StepsToTarget
from emabench.tables.gather import Run
from emabench.tables.judge import judge
from emabench.tables.spec import Table
from emabench.tables.statistics import holm
from emabench.tables.verdict import Kind, Verdict

from . import golden

H, P, N, W, F, U = Kind.HOLDS, Kind.PARTLY, Kind.NO_EFFECT, Kind.OPPOSITE, Kind.FAILS, Kind.UNDECIDED
SHAKE = (0.0, 1.0, -0.7, 0.4, -0.9, 0.2)  # of six seeds, the same for a row whatever its value


def verdict(
    claim: Mapping[str, Any],
    means: Sequence[float],
    *,
    noise: float = 0.001,
    seeds: int = 12,
    better: str = "lower",
    scale: str = "small",
) -> dict[str, Verdict]:
    """The verdicts on one claim about rows a, b, c, … with these means; rows shake by `noise`, unlike one another."""
    keys = "abcdef"[: len(means)]
    table = Table.model_validate(
        {
            "name": "t", "title": "T", "section": "1", "question": "?", "task": "ddpm", "seeds": {"first": 0, "looks": [max(8, seeds)]},
            "metrics": {"m": {"label": "M", "better": better}},
            "arms": {"only": []},
            "rows": {k: {"label": k, "arm": "only", "average": k, "reported": {"m": 5.0}} for k in keys},
            "claims": [{"text": "claim", "metric": "m", "sources": ["s"], **claim}],
            "sources": {"s": {"text": "s", "mark": "V"}},
        }
    )  # fmt: skip
    runs: dict[int, Run | None] = {}
    for seed in range(seeds):
        values = {
            key: {"m": mean + noise * SHAKE[(seed * (1 + 2 * i) + i) % 6] + 0.5 * noise * seed}
            for i, (key, mean) in enumerate(zip(keys, means, strict=True))
        }
        runs[seed] = Run(golden.result(values, {"m": better}, seed=seed, scale=scale))
    return dict(judge(table, scale, {"only": runs}).rulings[0].verdicts)


ORDER = {"type": "order", "along": ["a", "b", "c"], "article": "better"}
PAIR = {"row": "b", "over": "a"}
EQUAL = {"type": "difference", **PAIR, "margin": 0.1}
GAIN = {"type": "gain", **PAIR, "article": "-38%", "tolerance": "5%"}
OPTIMUM = {"type": "optimum", "along": ["a", "b", "c", "d"]}


@pytest.mark.parametrize(
    ("claim", "means", "noise", "expected"),
    [
        # order: lower is better
        (ORDER, [3, 2, 1], 0.001, H),
        ({**ORDER, "article": "worse"}, [1, 2, 3], 0.001, H),
        (ORDER, [1, 2, 3], 0.001, W),
        (ORDER, [3, 1, 2], 0.001, "first to last seen, not every step"),
        (ORDER, [2, 1, 2.001], 0.1, F),
        (ORDER, [3, 1, 1], 0.1, "first to last seen, steps open"),
        (ORDER, [3, 2.9, 2.8], 3.0, U),
        ({**ORDER, "margin": 0.5}, [3, 1, 1.2], 0.001, "first to last seen, steps open"),
        ({**ORDER, "margin": "50%"}, [3, 1, 1.2], 0.001, "first to last seen, steps open"),
        ({**ORDER, "margin": 0.5}, [3, 1, 2], 0.001, "first to last seen, not every step"),
        ({**ORDER, "margin": 0.5}, [3, 3.1, 2.8], 0.001, N),
        ({**ORDER, "margin": 0.5}, [3, 3, 3], 0.01, N),
        # sign of a difference
        ({"type": "difference", **PAIR, "article": "better"}, [2, 1], 0.001, H),
        ({"type": "difference", **PAIR, "article": "better"}, [1, 2], 0.001, W),
        ({"type": "difference", **PAIR, "article": "worse"}, [1, 2], 0.001, H),
        ({"type": "difference", **PAIR, "article": "worse"}, [2, 1], 0.001, W),
        ({"type": "difference", **PAIR, "article": "better"}, [2, 1.9], 2.0, U),
        ({"type": "difference", **PAIR, "article": "better"}, [2, 2], 0.0, F),
        ({**EQUAL, "article": "better"}, [2, 1.8], 0.001, H),
        ({**EQUAL, "article": "better"}, [2, 1.95], 0.001, N),
        ({**EQUAL, "article": "better"}, [2, 1.9], 0.03, "direction seen, size open"),
        ({**EQUAL, "article": "better"}, [2, 2], 0.01, N),
        ({**EQUAL, "article": "better"}, [2, 2.3], 0.01, W),
        ({**EQUAL, "article": "worse"}, [2, 2.05], 0.001, N),
        # equality within a margin
        ({**EQUAL, "article": "equal"}, [2, 2.02], 0.01, H),
        ({**EQUAL, "article": "equal"}, [2, 2.5], 0.01, F),
        ({**EQUAL, "article": "equal"}, [2, 1.5], 0.01, F),
        ({**EQUAL, "article": "equal"}, [2, 2.0], 1.0, U),
        ({**EQUAL, "margin": "5%", "article": "equal"}, [200, 202], 0.01, H),
        # relative gain with a tolerance
        (GAIN, [10, 6.2], 0.001, H),
        (GAIN, [10, 3.0], 0.001, "direction seen, larger"),
        (GAIN, [10, 9.0], 0.001, "direction seen, smaller"),
        (GAIN, [10, 6.7], 0.8, "direction seen, size open"),
        (GAIN, [10, 11.0], 0.001, W),
        (GAIN, [10, 10.0], 0.1, F),
        (GAIN, [10, 7.0], 8.0, U),
        ({**GAIN, "article": ["-74%", "-60%"]}, [10, 3.3], 0.001, H),
        # interior optimum
        ({**OPTIMUM, "article": "interior"}, [3, 1, 2, 4], 0.001, H),
        ({**OPTIMUM, "article": "interior"}, [4, 3, 2, 1], 0.001, F),
        ({**OPTIMUM, "article": "interior"}, [1, 2, 3, 4], 0.001, F),
        ({**OPTIMUM, "article": "interior"}, [2, 1.9, 1.9, 2], 2.0, U),
        ({**OPTIMUM, "article": ["b"]}, [3, 1, 2, 4], 0.001, H),
        ({**OPTIMUM, "article": ["c"]}, [3, 1, 2, 4], 0.001, "an optimum inside seen, elsewhere"),
        ({**OPTIMUM, "article": ["b", "c"]}, [3, 1, 2, 4], 0.001, H),
        # Ahead of the ends, and of the other one inside not shown to be.
        ({**OPTIMUM, "article": ["c"]}, [30, 1, 1, 40], 0.1, "an optimum inside seen, place open"),
    ],
)  # fmt: skip
def test_verdicts(claim: dict[str, Any], means: list[float], noise: float, expected: Kind | str) -> None:
    kind, part = (P, expected) if not isinstance(expected, Kind) else (expected, "")
    given = verdict(claim, means, noise=noise)["article"]
    assert (given.kind, given.part) == (kind, part), given
    # The mirror image of the world, better the other way round, gives the same verdict.
    if claim["type"] in ("order", "difference", "optimum") and "%" not in str(claim.get("margin")):
        mirrored = verdict(claim, [10 - mean for mean in means], noise=-noise, better="higher")["article"]
        assert (mirrored.kind, mirrored.part) == (kind, part), mirrored


@pytest.mark.parametrize("claim", [ORDER, {"type": "difference", **PAIR, "article": "better"}, GAIN])
def test_fewer_seeds_than_planned_decide_nothing(claim: dict[str, Any]) -> None:
    for seeds in (1, 2, 4, 7):
        assert verdict(claim, [3, 2, 1], seeds=seeds)["article"].kind is U
    assert (
        verdict({**claim, "tolerance": "30%"} if claim is GAIN else claim, [3, 2, 1], seeds=8)["article"].kind
        is H
    )


def test_article_and_literature_are_judged_apart() -> None:
    given = verdict({**EQUAL, "article": "better", "literature": "equal"}, [2, 2], noise=0.01)
    assert (given["article"].kind, given["literature"].kind) == (N, H)
    assert given["article"].size == "0.1"
    given = verdict({**GAIN, "literature": ["-74%", "-60%"]}, [10, 3.3])
    assert (given["article"].kind, given["literature"].kind) == (P, H)
    assert given["article"].why == "a larger change than −38%"
    assert verdict(GAIN, [10, 9.0])["article"].why == "a smaller change than −38%"


def test_what_two_expect_alike_is_asked_once() -> None:
    """Asked twice it would cost the whole table power."""
    for claim in ({**OPTIMUM, "article": ["b"]}, {**ORDER, "article": "better"}):
        alone = verdict(claim, [3, 1, 2, 4], noise=0.3)["article"]
        both = verdict({**claim, "literature": claim["article"]}, [3, 1, 2, 4], noise=0.3)
        assert alone == both["article"] == both["literature"]


def test_undecided_names_the_seeds_that_would_decide() -> None:
    claim = {"type": "difference", **PAIR, "article": "better"}
    given = verdict(claim, [2, 1.9], noise=0.08)["article"]
    assert given.kind is U
    assert given.seeds and 12 < given.seeds < math.inf


def test_the_size_of_a_bias_is_judged_not_its_sign() -> None:
    """From −222 to −5: the bias is smaller, though the number is larger."""
    claim = {"type": "difference", **PAIR, "article": "better"}
    assert verdict(claim, [-222, -5], noise=1)["article"].kind is W
    assert verdict({**claim, "of": "size"}, [-222, -5], noise=1)["article"].kind is H


def test_the_scale_does_not_decide() -> None:
    """In most seeds better is the same on differences and on ratios."""
    claim = {"type": "difference", **PAIR, "article": "better"}
    for margin in (0.0, "0%"):
        assert verdict({**claim, "margin": margin}, [247, 10], noise=20)["article"].kind is H


def test_an_argument_goes_before_what_is_measured() -> None:
    claim = {
        "type": "difference",
        **PAIR,
        "article": "better",
        "literature": "better",
        "cannot_hold": "above the data",
    }
    given = verdict(claim, [2, 1])
    assert (given["article"].kind, given["article"].why) == (Kind.CANNOT_HOLD, "above the data")
    assert given["literature"].kind is H


def test_a_relative_change_needs_values_above_zero() -> None:
    found = verdict(GAIN, [-10, -6])["article"]
    assert found.kind is Kind.NOT_COMPARABLE
    assert "above zero" in found.why


def test_one_value_below_zero_does_not_take_the_claim_away() -> None:
    """A fall to −0.001 is one by more than 100 %; of a base that is not above zero no share is taken."""
    for odd, expected in ((0, 12), (1, 11)):
        pairs = [[6.2, 10.0] for _ in range(12)]
        pairs[3][odd] = -0.001
        values = {key: {seed: pair[i] for seed, pair in enumerate(pairs)} for key, i in (("b", 0), ("a", 1))}
        measured = Measured({}, "small", "M", False, range(12), (12,), values)
        changes = measured.changes("b", "a", relative=True)
        assert sum(change < 0 for change in changes) == expected
        assert changes[3] == -math.inf if odd == 0 else math.isnan(changes[3])


def test_values_are_judged_at_paper_scale_alone() -> None:
    claim = {"type": "value", "row": "a", "tolerance": "10%"}  # the article reports 5.0
    assert verdict(claim, [5.0])["article"].kind is Kind.NOT_COMPARABLE
    for mean, expected in ((5.1, H), (6.5, F), (3.0, F)):
        assert verdict(claim, [mean], scale="paper", noise=0.01)["article"].kind is expected
    assert verdict(claim, [4.3], scale="paper", noise=0.3)["article"].kind is U
    assert verdict(claim, [6.5], scale="paper", noise=0.01)["article"].why == "above 5"
    points = {"type": "gain", **PAIR, "article": 0.4, "tolerance": 0.1}
    assert verdict(points, [76.1, 76.5], better="higher")["article"].kind is Kind.NOT_COMPARABLE
    assert verdict(points, [76.1, 76.5], better="higher", scale="paper")["article"].kind is H


def test_steps_are_known_to_the_measurements_alone() -> None:
    """Both rows pass between steps 1000 and 1200: that they are equally fast is not known, nor that one is slower."""
    rows = Table.model_validate(
        {
            "name": "t", "title": "T", "section": "1", "question": "?", "task": "ddpm", "seeds": 12,
            "metrics": {"m": {"label": "M", "better": "lower"}}, "arms": {"only": []}, "claims": [],
            "rows": {k: {"label": k, "arm": "only", "average": k} for k in "ab"},
        }
    ).rows  # fmt: skip

    def kind(row: int, over: int, every: int, article: str) -> Kind:
        claim = StepsToTarget.model_validate(
            {
                "type": "steps",
                "text": "",
                "metric": "m",
                **PAIR,
                "target": 1,
                "article": article,
                "tolerance": "2%",
            }
        )
        tracks = {
            key: {seed: [(step, 0.5 if step >= at else 2.0) for step in range(every, 4001, every)] for seed in range(12)}
            for key, at in (("b", row), ("a", over))
        }  # fmt: skip
        no = {key: dict.fromkeys(range(12), False) for key in "ab"}
        values = {key: dict.fromkeys(range(12), 0.5) for key in "ab"}
        measured = Measured(rows, "small", "M", False, range(12), (12,), values, no, tracks)
        expectation = claim.prepare(measured).expectations["article"]
        return expectation.verdict(holm(expectation.families), 0.05, 1).kind

    assert kind(1100, 1100, 200, "+2.2%") is U
    assert kind(1122, 1100, 2, "+2.2%") is H, "measured finely it is"
    assert kind(1100, 1100, 2, "+2.2%") is F
    assert kind(500, 1100, 200, "+2.2%") is W, "what is far apart a coarse grid tells too"
    assert kind(500, 1100, 200, "-60%") is P
