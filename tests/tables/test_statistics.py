from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from emabench.tables import statistics as ours
from emabench.tables.boundary import at_least, at_most, required, tail
from emabench.tables.statistics import AllOf, AnyOf, Family, MostlyThis, Statement, holm
from emabench.tables.statistics import Most as Majority


def most(hits: int, n: int, looks: tuple[int, ...] | None = None) -> Majority:
    return Majority([True] * hits + [False] * (n - hits), looks or (n,))


# -- how many seeds have to agree --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 5, 8, 11, 20, 40])
@pytest.mark.parametrize("level", [0.05, 0.05 / 6, 0.001])
def test_a_single_look_is_the_sign_test(n: int, level: float) -> None:
    (needed,) = required(level, 1, (n,))
    assert needed == int(stats.binom.isf(level, n, 0.5)) + 1
    assert tail(needed, n) == pytest.approx(stats.binom.sf(needed - 1, n, 0.5))


def crossing(looks: tuple[int, ...], needed: tuple[int, ...]) -> float:
    """The chance that fair coins pass at any look, over all sequences of them."""
    passed = 0
    for coins in itertools.product((0, 1), repeat=looks[-1]):
        passed += any(sum(coins[:n]) >= k for n, k in zip(looks, needed, strict=True))
    return passed / 2 ** looks[-1]


@pytest.mark.parametrize("looks", [(5, 8, 11), (6, 7, 8, 9, 10, 11, 12), (4, 12)])
@pytest.mark.parametrize("left", [1, 3, 6])
def test_several_looks_share_one_level(looks: tuple[int, ...], left: int) -> None:
    needed = required(0.05, left, looks)
    assert crossing(looks, needed) <= 0.05 / left
    for i in range(
        len(looks)
    ):  # and no single requirement could be lower at the last look without exceeding it
        if i == len(looks) - 1 and needed[i] > required(0.05, max(1, left - 1), looks)[i]:
            lower = (*needed[:i], needed[i] - 1)
            assert crossing(looks, lower) > 0.05 / left


def test_what_passes_beside_many_claims_passes_beside_fewer() -> None:
    for looks in ((8, 11, 14, 17, 20), (11,), tuple(range(5, 31))):
        rows = [required(0.04, left, looks) for left in range(1, 30)]
        assert all(
            a <= b for fewer, more in itertools.pairwise(rows) for a, b in zip(fewer, more, strict=True)
        )


def test_too_few_seeds_decide_nothing() -> None:
    # Of six claims 2^-7 < 5 %/6 < 2^-6: seven seeds that all agree are the first to pass.
    assert [most(n, n).shown(0.05, 6) for n in (5, 6, 7, 8)] == [False, False, True, True]


def test_shares_have_exact_intervals() -> None:
    for hits, n in ((8, 8), (5, 11), (0, 8), (10, 11)):
        theirs = stats.binomtest(hits, n, alternative="greater").proportion_ci(0.95, "exact")
        assert at_least(hits, n) == pytest.approx(theirs.low)
        theirs = stats.binomtest(hits, n, alternative="less").proportion_ci(0.95, "exact")
        assert at_most(hits, n) == pytest.approx(theirs.high)
    assert at_least(8, 8) == pytest.approx(0.05 ** (1 / 8))


def test_once_shown_stays_shown() -> None:
    hits = [True] * 8 + [False] * 12
    assert Majority(hits[:8], (8, 20)).shown(0.05, 1)
    assert Majority(hits, (8, 20)).shown(0.05, 1), "later seeds do not take a verdict back"
    assert not Majority(hits, (20,)).shown(0.05, 1)
    assert not Majority(hits[:7], (8, 20)).shown(0.05, 1), "between looks nothing is decided"
    assert not Majority([False] * 20 + [True] * 30, (8, 20)).shown(0.05, 1), "nor by seeds beyond the last"


def test_of_discordant_seeds() -> None:
    this, other = [True] * 8 + [False] * 3, [False] * 11
    statement = MostlyThis(this, other, (11,))
    p = stats.binomtest(8, 8, alternative="greater").pvalue
    assert statement.shown(p) and not statement.shown(p * 0.99)
    both = MostlyThis([True] * 11, [True] * 11, (11,))
    assert not both.shown(0.5), "seeds in which both happen say nothing"


@pytest.mark.parametrize(("hits", "n"), [(8, 10), (6, 8), (9, 14)])
def test_seeds_that_would_decide(hits: int, n: int) -> None:
    level = 0.05 / 6
    assert not most(hits, n).shown(level)
    seeds = int(most(hits, n).seeds(level))
    assert seeds > n and tail(math.floor(hits / n * seeds + 1e-9), seeds) <= level
    assert all(tail(math.floor(hits / n * k + 1e-9), k) > level for k in range(n + 1, seeds))
    assert most(5, 10).seeds(level) == math.inf and most(3, 10).seeds(level) == math.inf


# -- the reader's means ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x", [[0.3, -0.1, 0.4, 0.2, 0.7], [5.0, 5.1, 4.9], [-1.0, 2.0, -3.0, 4.0, 0.5]])
def test_interval_is_scipys(x: list[float]) -> None:
    interval = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    mean = ours.estimate(x)
    assert mean and mean.mean == pytest.approx(np.mean(x)) and mean.n == len(x)
    assert (mean.low, mean.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert ours.estimate([3.0]) == ours.Estimate(3.0, None, None, 1)
    assert ours.estimate([]) is None


# -- one error rate for a table ----------------------------------------------------------------------------------


class P(Statement):
    def __init__(self, p: float) -> None:
        self.p = p

    def shown(self, level: float, left: int = 1) -> bool:
        return self.p <= level / left


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
    statements = [P(p) for p in ps]
    shown = holm([Family({s: 1.0}, [[s]]) for s in statements])
    assert [s in shown for s in statements] == plain_holm(ps)


def test_a_family_passes_its_level_on_when_it_is_settled() -> None:
    some, size, other = P(0.001), P(0.9), P(0.04)
    assert other in holm([Family({some: 1.0}, [[some]]), Family({other: 1.0}, [[other]])])
    assert other not in holm([Family({some: 1.0, size: 1.0}, [[size]]), Family({other: 1.0}, [[other]])])
    assert other not in holm([Family(), Family({other: 1.0}, [[other]])]), "a claim not run keeps its level"
    half = P(0.04)
    assert half not in holm([Family({half: 0.5}, [[half]])])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_holm_shows_no_more_when_a_p_rises(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ps = [(rng.random(rng.integers(1, 4)) ** 4).tolist() for _ in range(5)]

    def shown(ps: list[list[float]]) -> list[bool]:
        statements = [[P(p) for p in each] for each in ps]
        result = holm([Family(dict.fromkeys(each, 1.0), [[s] for s in each]) for each in statements])
        return [s in result for each in statements for s in each]

    before = shown(ps)
    i = int(rng.integers(5))
    ps[i] = [min(1.0, 3 * p) for p in ps[i]]
    # Of the family itself: what is settled is tested no further, so another of its statements may now be reached.
    sizes = [len(each) for each in ps]
    outside = [k != i for k, size in enumerate(sizes) for _ in range(size)]
    assert all(b or not a or not o for a, b, o in zip(shown(ps), before, outside, strict=True))


def test_all_and_any() -> None:
    many, few = most(11, 11), most(7, 11)
    assert not AllOf([many, few]).shown(0.05) and AnyOf([many, few]).shown(0.05)
    just = most(8, 8)
    assert just.shown(1 / 256) and not AnyOf([just, few]).shown(1 / 256), "one of two has half the level"
    assert AllOf([many, few]).seeds(0.01) == few.seeds(0.01)
