"""How many seeds of n have to agree: the exact sign test, at one planned number of seeds or at several.

A majority claim ("in more than half of all seeds …") is tested by the number of seeds that bear it out, which is
binomial with ½ at most where the claim is false, whatever the distribution of the metric. With several looks the
level is spent in proportion to the seeds, and what the discreteness of a look leaves over is spent at the next: the
chance that a false claim passes at any look is computed exactly and is at most the level.
"""

from __future__ import annotations

from functools import cache
from math import comb
from typing import TYPE_CHECKING

from emabench.late import Late

if TYPE_CHECKING:
    import scipy
else:  # a run that is shown, and `--status`, do not need it
    scipy = Late("scipy")


@cache
def required(level: float, left: int, looks: tuple[int, ...]) -> tuple[int, ...]:
    """By look, how many seeds have to agree at `level / left`; more than there are where none would do.

    Rising in `left`, so that what is shown beside many other claims is shown beside fewer too (Holm needs that).
    """
    least = required(level, left - 1, looks) if left > 1 else (0,) * len(looks)
    return _boundary(level / left, looks, least)


def _boundary(level: float, looks: tuple[int, ...], least: tuple[int, ...]) -> tuple[int, ...]:
    counts = [1.0]  # probability of each count at p = ½, on paths that have not passed yet
    needed, spent, before = [], 0.0, 0
    for look, floor in zip(looks, least, strict=True):
        counts = _add(counts, look - before)
        allowed = level * look / looks[-1] * (1 + 1e-12) - spent
        tail, k = 0.0, look + 1
        while k > max(floor, look // 2 + 1) and tail + counts[k - 1] <= allowed:
            k -= 1
            tail += counts[k]
        needed.append(k)
        counts = [p if i < k else 0.0 for i, p in enumerate(counts)]
        spent, before = spent + tail, look
    return tuple(needed)


def _add(counts: list[float], trials: int) -> list[float]:
    """The distribution of the count after so many more fair coins."""
    coins = [comb(trials, i) / 2**trials for i in range(trials + 1)]
    total = [0.0] * (len(counts) + trials)
    for i, p in enumerate(counts):
        for j, q in enumerate(coins):
            total[i + j] += p * q
    return total


def tail(hits: int, n: int) -> float:
    """P(Bin(n, ½) ≥ hits): the p-value of the sign test."""
    return sum(comb(n, k) for k in range(hits, n + 1)) / 2**n


def at_least(hits: int, n: int, confidence: float = 0.95) -> float:
    """The lower end of the exact one-sided interval of a share seen in `hits` of n (Clopper and Pearson 1934)."""
    return float(scipy.special.betaincinv(hits, n - hits + 1, 1 - confidence)) if hits else 0.0


def at_most(hits: int, n: int, confidence: float = 0.95) -> float:
    """The upper end of that interval."""
    return 1 - at_least(n - hits, n, confidence)
