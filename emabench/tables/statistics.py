"""Paired differences of few seeds: intervals, tests, how many seeds would do, and one error rate for a table.

Everything decided rests on the paired t-test, held back by an exact test: a statement also needs the sign-flip
permutation test at 5 %, which takes no normal distribution for granted. With fewer than five seeds that test
cannot reach 5 % whatever was measured, so nothing is decided from fewer than five.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

from emabench.late import Late

if TYPE_CHECKING:
    import numpy as np
    import scipy
else:  # a run that is shown, and `--status`, need neither
    np, scipy = Late("numpy"), Late("scipy")

ALPHA = 0.05  # chance of a false statement, for a whole table
POWER = 0.8  # with which the number of seeds named would decide
FEWEST = 5  # 2^-5 < 5 % < 2^-4: the exact test decides nothing below
EXACT_UP_TO = 14  # seeds; from there on the t-test no longer leans on the shape of the distribution
MOST = 2000  # seeds; a larger number is as good as never


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval. Without a second seed there is no interval."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def map(self, function: Callable[[float], float]) -> Estimate:
        """The estimate on another, increasing scale (back from logarithms, say)."""
        low, high = (None if end is None else function(end) for end in (self.low, self.high))
        return Estimate(function(self.mean), low, high, self.n)


def estimate(values: Sequence[float], level: float = 0.95) -> Estimate | None:
    """Mean and t-interval (of differences: the paired t-interval). None without values."""
    x = np.asarray(values, float)
    if not len(x):
        return None
    if len(x) == 1:
        return Estimate(float(x[0]), None, None, 1)
    half = float(scipy.special.stdtrit(len(x) - 1, 0.5 + level / 2)) * _standard_error(x)
    return Estimate(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half, len(x))


def bootstrap(
    values: Sequence[float], level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Estimate | None:
    """The same by bootstrap-t, which lets the interval be lopsided; seeded, so the same values give the same ends.

    A second opinion for the reader, never what decides. (A percentile bootstrap of five seeds covers about 85 %.)
    """
    x = np.asarray(values, float)
    if len(x) < FEWEST or _standard_error(x) == 0:
        return estimate(values, level)
    drawn = np.random.default_rng(seed).choice(x, (draws, len(x)))
    spread = drawn.std(axis=1, ddof=1) / math.sqrt(len(x))
    t = (drawn.mean(axis=1) - x.mean())[spread > 0] / spread[spread > 0]
    low, high = np.quantile(t, [0.5 - level / 2, 0.5 + level / 2])
    error = _standard_error(x)
    return Estimate(float(x.mean()), float(x.mean() - high * error), float(x.mean() - low * error), len(x))


def t_above(values: Sequence[float], threshold: float = 0.0) -> float:
    """One-sided p of the t-test that the mean is not above the threshold."""
    x = np.asarray(values, float) - threshold
    if len(x) < 2:
        return 1.0
    error, mean = _standard_error(x), float(x.mean())
    if error <= 1e-12 * max(1e-300, float(np.abs(x).max())):  # the same number every time, up to rounding
        return 0.0 if mean > 0 else 1.0
    return float(scipy.special.stdtr(len(x) - 1, -mean / error))


def sign_flip_above(values: Sequence[float], threshold: float = 0.0) -> float:
    """One-sided p of the exact test: the share of all ± assignments whose mean is as large as the one seen."""
    x = np.asarray(values, float) - threshold
    if not len(x):
        return 1.0
    if len(x) > EXACT_UP_TO:
        raise ValueError(f"{len(x)} values: 2^{len(x)} assignments are too many")
    sums = _signs(len(x)) @ x
    return float(np.mean(sums >= x.sum() - 1e-9 * np.abs(x).sum()))


def p_above(values: Sequence[float], threshold: float = 0.0) -> float:
    """p of the statement that the mean is above the threshold: the t-test, if the exact test does not object."""
    p = t_above(values, threshold)
    if len(values) > EXACT_UP_TO:
        return p
    exact = sign_flip_above(values, threshold)
    return p if exact <= ALPHA else max(p, exact)


def seeds_for(values: Sequence[float], threshold: float, level: float) -> float:
    """Seeds with which the mean would be shown to be above the threshold, were effect and spread as seen so far."""
    x = np.asarray(values, float) - threshold
    if len(x) < 2 or x.mean() <= 0:
        return math.inf
    if _standard_error(x) == 0:
        return FEWEST
    effect = float(x.mean() / x.std(ddof=1))
    if _power(effect, MOST, level) < POWER:
        return math.inf
    low, high = FEWEST - 1, MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(effect, middle, level) >= POWER else (middle, high)
    return high


def _power(effect: float, n: int, level: float) -> float:
    """Of the one-sided t-test, for an effect in units of the spread."""
    shift = effect * math.sqrt(n)
    needed = float(scipy.special.stdtrit(n - 1, 1 - level))
    if shift > 37:  # the noncentral t is computed no further, and there is no doubt left
        return 1.0
    return 1.0 - float(scipy.special.nctdtr(n - 1, shift, needed))


def _standard_error(x: np.ndarray) -> float:
    return float(x.std(ddof=1)) / math.sqrt(len(x)) if len(x) > 1 else math.inf


@cache
def _signs(n: int) -> np.ndarray:
    return np.array(list(itertools.product((1.0, -1.0), repeat=n)))


class Statement:
    """Something that measurements may show: its p, and how many seeds would show it at a level."""

    p: float

    def seeds(self, level: float) -> float:
        raise NotImplementedError


class Above(Statement):
    """The mean is above a threshold."""

    def __init__(self, values: Sequence[float], threshold: float = 0.0) -> None:
        self.values, self.threshold = values, threshold

    @cached_property
    def p(self) -> float:  # type: ignore[override]
        return p_above(self.values, self.threshold)

    def seeds(self, level: float) -> float:
        found = seeds_for(self.values, self.threshold, level)
        # What these seeds do not show (the exact test may be what objects) needs at least one more.
        return found if self.p <= level else max(found, len(self.values) + 1)


def below(values: Sequence[float], threshold: float = 0.0) -> Above:
    """The mean is below a threshold."""
    return Above([-value for value in values], -threshold)


class Rarer(Statement):
    """What is counted here is rarer than there: Fisher's exact test, one-sided.

    here, there: 1 for each run in which it happened, 0 for each other one.
    """

    def __init__(self, here: Sequence[float], there: Sequence[float]) -> None:
        self.counts = [(round(sum(x)), len(x)) for x in (here, there)]

    @cached_property
    def p(self) -> float:  # type: ignore[override]
        (a, n), (b, m) = self.counts
        return _fisher(a, n, b, m)

    def seeds(self, level: float) -> float:
        """Seeds that would show it, were the shares as seen so far."""
        (a, n), (b, m) = self.counts
        if not n or not m or a / n >= b / m:
            return math.inf
        more = range(max(FEWEST, n + 1, m + 1), MOST)
        each = (k for k in more if _fisher(round(a / n * k), k, round(b / m * k), k) <= level)
        return next(each, math.inf)


def _fisher(a: int, n: int, b: int, m: int) -> float:
    """Chance of a or fewer of n, when a + b of the n + m are drawn at random."""
    return float(scipy.stats.hypergeom.cdf(a, n + m, a + b, n))


class AllOf(Statement):
    """Every one of these: shown when each is, at the full level (an intersection-union test)."""

    def __init__(self, parts: Sequence[Statement]) -> None:
        self.parts = parts

    @property
    def p(self) -> float:  # type: ignore[override]
        return max(part.p for part in self.parts)

    def seeds(self, level: float) -> float:
        return max(part.seeds(level) for part in self.parts)


class AnyOf(Statement):
    """At least one of these (Bonferroni)."""

    def __init__(self, parts: Sequence[Statement]) -> None:
        self.parts = parts

    @property
    def p(self) -> float:  # type: ignore[override]
        return min(1.0, len(self.parts) * min(part.p for part in self.parts))

    def seeds(self, level: float) -> float:
        return min(part.seeds(level / len(self.parts)) for part in self.parts)


Side = Sequence[Statement]
"""Statements of which each implies the ones before it ("above 0", "above 0.1"): tested in this order."""


def holm(sides: Sequence[Side], alpha: float = ALPHA) -> set[Statement]:
    """Which statements are shown, so that any false one among all has a chance of at most alpha.

    Holm's procedure over sides. Within a side the statements are tested in their order, each at the side's level,
    until one is not shown; a side that is shown to its end leaves its level to the others (a fixed sequence in
    each family of Bretz et al. 2009, "A graphical approach to sequentially rejective multiple test procedures").
    Both sides of a difference are sides of their own, so statements about its direction are covered too.
    """
    shown: set[Statement] = set()
    left = [side for side in sides if side]
    while left:
        level = alpha / len(left)
        rest = []
        for side in left:
            for statement in side:
                if statement.p > level:
                    rest.append(side)
                    break
                shown.add(statement)
        if len(rest) == len(left):
            break
        left = rest
    return shown
