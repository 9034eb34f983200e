from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from emabench.tables import statistics as ours
from emabench.tables.statistics import Above, AllOf, AnyOf, Statement, below, holm

SAMPLES = [
    [0.3, -0.1, 0.4, 0.2, 0.7],
    [5.0, 5.1, 4.9, 5.2, 5.05, 4.97],
    [-1.0, 2.0, -3.0, 4.0, 0.5, 0.1, -0.2],
    [1e-5, 2e-5, -1e-5, 3e-5],
]


@pytest.mark.parametrize("x", SAMPLES)
@pytest.mark.parametrize("threshold", [0.0, 0.15, -2.0])
def test_t_test_and_interval_are_scipys(x: list[float], threshold: float) -> None:
    theirs = stats.ttest_1samp(x, threshold, alternative="greater")
    assert ours.t_above(x, threshold) == pytest.approx(theirs.pvalue, rel=1e-9)
    interval = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    found = ours.estimate(x)
    assert found
    assert (found.mean, found.low, found.high, found.n) == (
        pytest.approx(np.mean(x)),
        pytest.approx(interval.low),
        pytest.approx(interval.high),
        len(x),
    )


@pytest.mark.parametrize("x", SAMPLES)
def test_sign_flip_is_scipys_permutation_test(x: list[float]) -> None:
    theirs = stats.permutation_test(
        (x, np.zeros(len(x))),
        lambda a, b: np.mean(a - b),
        permutation_type="samples",
        alternative="greater",
        n_resamples=np.inf,
    )
    assert ours.sign_flip_above(x) == pytest.approx(theirs.pvalue)


def test_sign_flip_counts_ties_as_the_observed() -> None:
    assert ours.sign_flip_above([1.0, 1.0, 1.0, 1.0, 1.0]) == 1 / 32
    assert ours.sign_flip_above([0.0, 0.0, 0.0]) == 1.0
    x = [0.2, -0.1, 0.4]
    sums = [
        sum(s * v for s, v in zip(signs, x, strict=True)) for signs in itertools.product((1, -1), repeat=3)
    ]
    assert ours.sign_flip_above(x) == pytest.approx(sum(each >= sum(x) - 1e-12 for each in sums) / 8)


def test_nothing_is_shown_by_fewer_than_five_seeds() -> None:
    clear = [1.0, 1.001, 0.999, 1.0005, 0.9995]
    for n in range(1, ours.FEWEST):
        assert ours.p_above(clear[:n]) > ours.ALPHA
    assert ours.p_above(clear) < 1e-6


def test_the_exact_test_holds_the_t_test_back() -> None:
    # The t-test alone would call this: four large and alike, one slightly below.
    x = [1.0, 1.0, 1.0, 1.0, -0.05]
    assert ours.t_above(x) < 0.05
    assert ours.p_above(x) == pytest.approx(2 / 32)


def test_the_same_number_every_time() -> None:
    assert ours.t_above([0.5] * 5) == 0.0
    assert ours.t_above([0.5] * 5, 0.5) == 1.0
    assert ours.t_above([-0.5] * 5) == 1.0
    assert ours.seeds_for([0.5] * 5, 0.0, 0.01) == ours.FEWEST


def test_one_value_has_no_interval_and_none_no_estimate() -> None:
    assert ours.estimate([3.0]) == ours.Estimate(3.0, None, None, 1)
    assert ours.estimate([]) is None
    assert ours.t_above([3.0]) == 1.0


@pytest.mark.parametrize(("effect", "level"), [(0.5, 0.025), (1.0, 0.005), (2.0, 0.01), (0.2, 0.05)])
def test_seeds_for_reach_the_power(effect: float, level: float) -> None:
    x = np.array([-1.0, 1.0, -0.5, 0.5, 0.2, -0.2])
    x = x / x.std(ddof=1) + effect
    n = int(ours.seeds_for(x.tolist(), 0.0, level))

    def power(n: int) -> float:
        return 1 - stats.nct.cdf(stats.t.ppf(1 - level, n - 1), n - 1, effect * math.sqrt(n))

    assert power(n) >= ours.POWER - 1e-9
    assert n == ours.FEWEST or power(n - 1) < ours.POWER
    drawn = np.random.default_rng(1).normal(effect, 1, (4000, n))
    t = drawn.mean(axis=1) / drawn.std(axis=1, ddof=1) * math.sqrt(n)
    assert np.mean(t > stats.t.ppf(1 - level, n - 1)) > ours.POWER - 0.03


def test_seeds_for_what_is_not_there() -> None:
    assert ours.seeds_for([-0.1, -0.2, -0.3], 0.0, 0.05) == math.inf
    assert ours.seeds_for([1.0, -1.0, 0.001], 0.0, 0.05) == math.inf, "more than are worth naming"
    assert ours.seeds_for([1.0], 0.0, 0.05) == math.inf


def test_bootstrap_is_seeded_and_covers() -> None:
    x = SAMPLES[1]
    assert ours.bootstrap(x) == ours.bootstrap(x)
    rng = np.random.default_rng(0)
    drawn = [ours.bootstrap(rng.exponential(1, 8).tolist(), draws=400) for _ in range(300)]
    covered = np.mean(
        [e.low <= 1.0 <= e.high for e in drawn if e and e.low is not None and e.high is not None]
    )
    assert 0.9 < covered <= 1.0
    found = ours.bootstrap([2.0, 2.1, 1.9])
    assert found == ours.estimate([2.0, 2.1, 1.9]), "too few for a bootstrap"


class P(Statement):
    def __init__(self, p: float) -> None:
        self.p = p


def shown(sides: list[list[float]]) -> list[list[bool]]:
    statements = [[P(p) for p in side] for side in sides]
    found = holm(statements)
    return [[s in found for s in side] for side in statements]


def plain_holm(ps: list[float]) -> list[bool]:
    """Holm 1979, as in the textbooks."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    rejected = [False] * len(ps)
    for rank, i in enumerate(order):
        if ps[i] > ours.ALPHA / (len(ps) - rank):
            break
        rejected[i] = True
    return rejected


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_of_single_statements_is_holm(ps: list[float]) -> None:
    assert [side[0] for side in shown([[p] for p in ps])] == plain_holm(ps)


def test_a_side_is_tested_in_order_and_passes_its_level_on_only_when_done() -> None:
    assert shown([[0.01, 0.6, 0.001]]) == [[True, False, False]], "what comes after a gap is not shown"
    assert shown([[0.001], [0.04]]) == [[True], [True]], "the first side is done: 0.04 has all of 5 %"
    assert shown([[0.001, 0.9], [0.04]]) == [[True, False], [False]], "it is not done: 0.04 has 2.5 %"
    assert shown([]) == []


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_holm_shows_no_more_when_a_p_rises(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sides = [(rng.random(rng.integers(1, 4)) ** 4).tolist() for _ in range(5)]
    before = shown(sides)
    i = int(rng.integers(5))
    sides[i] = [min(1.0, 3 * p) for p in sides[i]]
    after = shown(sides)
    assert all(
        b or not a
        for a_side, b_side in zip(after, before, strict=True)
        for a, b in zip(a_side, b_side, strict=True)
    )


def test_all_and_any() -> None:
    a, b = Above([1.0, 1.1, 0.9, 1.0, 1.05]), Above([0.1, -0.2, 0.3, 0.1, 0.4])
    assert AllOf([a, b]).p == b.p
    assert AnyOf([a, b]).p == pytest.approx(2 * a.p)
    assert AllOf([a, b]).seeds(0.01) == b.seeds(0.01)
    assert AnyOf([a, b]).seeds(0.01) == a.seeds(0.005)
    assert below([1.0, 2.0, 3.0], 4.0).p == Above([-1.0, -2.0, -3.0], -4.0).p


def test_what_is_not_shown_takes_more_seeds_than_there_are() -> None:
    here, there = [1.0] * 3 + [0.0] * 9, [1.0] * 9 + [0.0] * 3
    rarer = ours.Rarer(here, there)
    assert rarer.p > 0.0125
    assert rarer.seeds(0.0125) > 12
