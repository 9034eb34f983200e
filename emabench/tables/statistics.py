"""Means over seeds for the reader, statements about most seeds for the verdicts, and one error rate for a table.

What decides is counted, not averaged: a statement is about the majority of all seeds that could be drawn ("in more
than half of them the average is better"), and is tested by how many of those drawn bear it out. Nothing is assumed
of the distribution, so that one seed that collapses, values on a coarse grid, or a skewed change break nothing.
The mean with its interval is description.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from emabench.late import Late

if TYPE_CHECKING:
    import numpy as np
    import scipy
else:  # a run that is shown, and `--status`, need neither
    np, scipy = Late("numpy"), Late("scipy")

from emabench.tables.boundary import required, tail

ALPHA = 0.05  # chance of any false verdict, for a whole table
MOST_SEEDS = 400  # a larger number is as good as never


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
    half = (
        float(scipy.special.stdtrit(len(x) - 1, 0.5 + level / 2)) * float(x.std(ddof=1)) / math.sqrt(len(x))
    )
    return Estimate(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half, len(x))


class Statement:
    """Something that seeds may show."""

    def shown(self, level: float, left: int = 1) -> bool:
        """Is it shown at `level / left`? What is shown at a smaller level is shown at a larger one."""
        raise NotImplementedError

    def seeds(self, level: float, left: int = 1) -> float:
        """How many seeds would show it, were the shares as seen so far."""
        raise NotImplementedError


class Most(Statement):
    """True of more than half of all seeds.

    hits: of each seed in its order, whether it bears the statement out. looks: the planned numbers of seeds at
    which they are counted; those beyond the last are not.
    """

    def __init__(self, hits: Sequence[bool], looks: tuple[int, ...]) -> None:
        self.hits, self.looks = list(hits), looks

    @property
    def count(self) -> int:
        return sum(self.hits)

    def shown(self, level: float, left: int = 1) -> bool:
        needed = required(level, left, self.looks)
        reached = [(n, k) for n, k in zip(self.looks, needed, strict=True) if n <= len(self.hits)]
        return any(sum(self.hits[:n]) >= k for n, k in reached)

    def seeds(self, level: float, left: int = 1) -> float:
        n = len(self.hits)
        if n and self.count <= n / 2:
            return math.inf
        share = self.count / n if n else 1.0
        return _first(share, 0.0, max(n + 1, self.looks[0]) if n < self.looks[0] else n + 1, level / left)


class MostlyThis(Statement):
    """Of the seeds in which just one of two things happens, more than half have this one (McNemar, exact).

    this, other: of each seed, whether the one happens and whether the other does.
    """

    def __init__(self, this: Sequence[bool], other: Sequence[bool], looks: tuple[int, ...]) -> None:
        self.only_this = [a and not b for a, b in zip(this, other, strict=True)]
        self.only_other = [b and not a for a, b in zip(this, other, strict=True)]
        self.looks = looks

    def shown(self, level: float, left: int = 1) -> bool:
        before = 0
        for look in self.looks:
            share, before = (look - before) / self.looks[-1], look
            hits, others = sum(self.only_this[:look]), sum(self.only_other[:look])
            if look <= len(self.only_this) and tail(hits, hits + others) <= level * share / left:
                return True
        return False

    def seeds(self, level: float, left: int = 1) -> float:
        n, hits, others = len(self.only_this), sum(self.only_this), sum(self.only_other)
        if not n or hits <= others:
            return math.inf
        return _first(hits / n, others / n, n + 1, level / left, of_both=True)


def _first(share: float, other: float, first: int, level: float, of_both: bool = False) -> float:
    """The first number of seeds whose counts pass, were the shares of hits (and of others) as given."""
    n = np.arange(first, MOST_SEEDS)
    hits = np.floor(share * n + 1e-9).astype(int)
    trials = hits + np.ceil(other * n - 1e-9).astype(int) if of_both else n
    passed = np.flatnonzero(hits >= _needed(level)[trials])
    return float(n[passed[0]]) if len(passed) else math.inf


@cache
def _needed(level: float) -> np.ndarray:
    """By number of seeds, how many of them pass a single look at this level."""
    return np.argmax(_tails() <= level, axis=1)


@cache
def _tails() -> np.ndarray:
    """P(Bin(n, ½) ≥ k) by n and k, for k to one more than the most seeds: row by row of Pascal's triangle."""
    chances = np.zeros((MOST_SEEDS + 1, MOST_SEEDS + 2))
    chances[0, 0] = 1.0
    for n in range(1, MOST_SEEDS + 1):
        chances[n, 1:] = (chances[n - 1, 1:] + chances[n - 1, :-1]) / 2
        chances[n, 0] = chances[n - 1, 0] / 2
    return np.asarray(chances[:, ::-1].cumsum(axis=1)[:, ::-1])


class AllOf(Statement):
    """Every one of these: each at the full level (an intersection-union test)."""

    def __init__(self, parts: Sequence[Statement]) -> None:
        self.parts = parts

    def shown(self, level: float, left: int = 1) -> bool:
        return all(part.shown(level, left) for part in self.parts)

    def seeds(self, level: float, left: int = 1) -> float:
        return max(part.seeds(level, left) for part in self.parts)


class AnyOf(Statement):
    """At least one of these, named or not (Bonferroni)."""

    def __init__(self, parts: Sequence[Statement]) -> None:
        self.parts = parts

    def shown(self, level: float, left: int = 1) -> bool:
        return any(part.shown(level / len(self.parts), left) for part in self.parts)

    def seeds(self, level: float, left: int = 1) -> float:
        return min(part.seeds(level / len(self.parts), left) for part in self.parts)


@dataclass(frozen=True, eq=False)
class Family:
    """The statements about one expectation, with the share of its level that each may use.

    The shares are set so that in every state of the world the statements that are false there have shares of 1 at
    most in all; a statement that implies another counts as part of it. `ends` are the combinations that settle the
    expectation: with any of them shown it is done, and leaves its level to the others.
    """

    shares: Mapping[Statement, float] = field(default_factory=dict)
    ends: Sequence[Sequence[Statement]] = ()


def holm(families: Sequence[Family], alpha: float = ALPHA) -> set[Statement]:
    """Which statements are shown, so that the chance of any false one among all families is at most alpha.

    Holm's procedure (1979) over families. A family that is settled is not tested further (Shaffer 1980: its false
    statements can then no longer be shown), one that cannot be tested stays and keeps its part of the level.
    """
    shown: set[Statement] = set()
    left = list(families)
    while left:
        for family in left:
            shown |= {s for s, share in family.shares.items() if s.shown(alpha * share, len(left))}
        open_ = [family for family in left if not _settled(family, shown)]
        if len(open_) == len(left):
            break
        left = open_
    return shown


def _settled(family: Family, shown: Collection[Statement]) -> bool:
    return any(all(statement in shown for statement in end) for end in family.ends)
