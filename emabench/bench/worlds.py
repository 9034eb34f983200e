"""Worlds with a known truth for `emabench bench verdicts`: how a table's rows come out by seed, and what is true there.

Lower is better. A world draws the metric of four rows (raw, short, middle, long) by seed; NaN is a metric that is not
finite. It may also say which runs diverge, which fail and when a target is reached. What is true of an estimand is
taken from a large sample of the same world, or from the table's own draw where the world has one (a test set).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

ROWS = ("raw", "short", "middle", "long")
Draw = Callable[[np.random.Generator, int], "Drawn"]


@dataclass(frozen=True)
class Drawn:
    """Seeds of one table: metric by seed and row; in which rows the run diverged, or failed; steps to the target."""

    values: np.ndarray
    diverged: np.ndarray | None = None
    failed: np.ndarray | None = None
    steps: np.ndarray | None = None
    commits: Mapping[str, str] = field(default_factory=dict)  # by row, where not the common one
    same_world: Callable[[np.random.Generator, int], Drawn] | None = None  # given what all of its seeds share


@dataclass(frozen=True)
class World:
    """A name, what is drawn, and what a reader should know of its truth."""

    name: str
    draw: Draw
    about: str
    looks: tuple[int, ...] | None = None  # instead of one look at the number of seeds asked for
    every_n: bool = False  # judged after every seed: a false verdict at any of them counts


def shared(rng: np.random.Generator, n: int) -> np.ndarray:
    """What all rows of a seed share."""
    return 10 + rng.normal(size=(n, 1))


def rows(change: Callable[[np.random.Generator, int], np.ndarray]) -> Draw:
    """Rows that differ from raw by independent draws of one change."""

    def draw(rng: np.random.Generator, n: int) -> Drawn:
        changes = np.stack([np.zeros(n), *(change(rng, n) for _ in range(3))], axis=1)
        return Drawn(shared(rng, n) + changes)

    return draw


def shifted(shifts: tuple[float, float, float], spread: float, noise: str = "normal") -> Draw:
    """Rows that differ from raw by fixed medians, with noise of median zero."""

    def draw(rng: np.random.Generator, n: int) -> Drawn:
        own = np.stack([_noise(rng, n, noise) for _ in range(3)], axis=1) * spread + np.array(shifts)
        return Drawn(shared(rng, n) + np.concatenate([np.zeros((n, 1)), own], axis=1))

    return draw


def _noise(rng: np.random.Generator, n: int, kind: str) -> np.ndarray:
    if kind == "heavy":
        return rng.standard_t(3, n) / math.sqrt(3)
    if kind == "skewed":
        return rng.lognormal(0, 1, n) - 1
    if kind == "bimodal":
        return rng.choice((-1.0, 1.0), n) + 0.1 * rng.normal(size=n)
    return rng.normal(size=n)


def correlated(rng: np.random.Generator, n: int) -> Drawn:
    common = rng.normal(size=(n, 1))
    own = 0.3 * (math.sqrt(0.95) * common + math.sqrt(0.05) * rng.normal(size=(n, 3)))
    return Drawn(shared(rng, n) + np.concatenate([np.zeros((n, 1)), own], axis=1))


def spreads(rng: np.random.Generator, n: int) -> Drawn:
    return Drawn(10 + rng.normal(size=(n, 4)) * np.array([5.0, 0.05, 5.0, 0.05]))


def collapse(rng: np.random.Generator, n: int) -> np.ndarray:
    return -0.02 + 0.01 * rng.normal(size=n) + 3.0 * (rng.random(n) < 0.1)


def one_off(rng: np.random.Generator, n: int) -> np.ndarray:
    return 0.02 * rng.normal(size=n) - 2.0 * (rng.random(n) < 0.1)


def lognormal(sigma: float) -> Callable[[np.random.Generator, int], np.ndarray]:
    return lambda rng, n: rng.lognormal(0, sigma, n) - math.exp(sigma**2 / 2)


def quantum(moved: float, size: float = 0.2) -> Callable[[np.random.Generator, int], np.ndarray]:
    return lambda rng, n: size * rng.choice((-1, 0, 1), n, p=(moved / 2, 1 - moved, moved / 2))


def multiplicative(rng: np.random.Generator, n: int) -> Drawn:
    raw = np.exp(rng.normal(-(0.8**2) / 2, 0.8, (n, 1)))
    return Drawn(np.concatenate([raw, np.exp(rng.normal(-(0.05**2) / 2, 0.05, (n, 3)))], axis=1))


def _hidden(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    changes = rng.normal(size=(n, 3))
    lost = np.concatenate([np.zeros((n, 1), bool), changes > 0.5], axis=1)
    return shared(rng, n) + np.concatenate([np.zeros((n, 1)), changes], axis=1), lost


def survivors(rng: np.random.Generator, n: int) -> Drawn:
    values, lost = _hidden(rng, n)
    return Drawn(values, diverged=lost)


def not_finite(rng: np.random.Generator, n: int) -> Drawn:
    values, lost = _hidden(rng, n)
    return Drawn(np.where(lost, np.nan, values))


def failures(rng: np.random.Generator, n: int) -> Drawn:
    values, lost = _hidden(rng, n)
    return Drawn(values, failed=lost)


def both_diverge(rng: np.random.Generator, n: int) -> Drawn:
    return Drawn(shared(rng, n) + 0.3 * rng.normal(size=(n, 4)), diverged=rng.random((n, 4)) < 0.3)


def fewer_diverge(rng: np.random.Generator, n: int) -> Drawn:
    chance = np.array([0.6, 0.3, 0.1, 0.02])
    return Drawn(shared(rng, n) + 0.3 * rng.normal(size=(n, 4)), diverged=rng.random((n, 4)) < chance)


def ceiling(rng: np.random.Generator, n: int) -> Drawn:
    """Errors of a classifier on 50 items that is nearly always right: most seeds are ties."""
    return Drawn(rng.binomial(50, 0.01, (n, 4)) / 50 * 10)


def test_set(rng: np.random.Generator, n: int) -> Drawn:
    """10 000 items, 1 % discordant answers, half of them on the same items in every seed; per cent of errors."""
    fixed = 2 * rng.binomial(50, 0.5, 3) - 50

    def on_it(rng: np.random.Generator, n: int) -> Drawn:
        changes = (fixed + 2 * rng.binomial(50, 0.5, (n, 3)) - 50) / 100
        return Drawn(shared(rng, n) + np.concatenate([np.zeros((n, 1)), changes], axis=1))

    return Drawn(on_it(rng, n).values, same_world=on_it)


def step_counts(medians: tuple[float, ...], never: float = 0.0) -> Draw:
    """Steps to a target with these medians, log-normal; each row misses the target with this chance."""

    def draw(rng: np.random.Generator, n: int) -> Drawn:
        steps = np.exp(np.log(medians) + 0.15 * rng.normal(size=(n, 4)))
        steps = np.where(rng.random((n, 4)) < never, np.inf, steps)
        return Drawn(shared(rng, n) + 0.3 * rng.normal(size=(n, 4)), steps=steps)

    return draw


def two_versions(rng: np.random.Generator, n: int) -> Drawn:
    """The rows but raw come from a commit with a defect that makes them look better."""
    values = shared(rng, n) + np.array([0.0, -1.0, -1.0, -1.0]) + 0.1 * rng.normal(size=(n, 4))
    others = dict.fromkeys(ROWS[1:], "other")
    return Drawn(
        values, commits=others, same_world=lambda r, k: Drawn(shared(r, k) + 0.1 * r.normal(size=(k, 4)))
    )


WORLDS = (
    World("no effect, normal", shifted((0, 0, 0), 0.3), "every change has median 0"),
    World("no effect, heavy tails", shifted((0, 0, 0), 0.3, "heavy"), "the same, Student's t with 3 degrees"),
    World("no effect, skewed", shifted((0, 0, 0), 0.3, "skewed"), "the same, log-normal about its median"),
    World("no effect, bimodal", shifted((0, 0, 0), 0.5, "bimodal"), "half of the seeds gain 0.5, half lose it"),
    World("no effect, correlated", correlated, "changes of the rows correlate with 0.95"),
    World("unlike spreads", spreads, "rows of spread 5 and 0.05 about one median"),
    World("rare collapse", rows(collapse), "better by 0.02 in most seeds; one in ten is worse by 3"),
    World("equal but for one in ten", rows(one_off), "a typical seed is equal; one in ten is better by 2"),
    World("skewed change, σ = 0.75", rows(lognormal(0.75)), "mean change 0; better in 65 % of seeds"),
    World("skewed change, σ = 1", rows(lognormal(1.0)), "mean change 0; better in 69 % of seeds"),
    World("one quantum, 80 % move", rows(quantum(0.8)), "changes of −q, 0, +q: neither way in most seeds"),
    World("one quantum, all move", rows(quantum(1.0)), "changes of −q, +q: exactly half each way"),
    World("mostly ties", ceiling, "errors on 50 items: most seeds are ties"),
    World("survivors", survivors, "an arm diverges where it would be worse by more than 0.5"),
    World("metric not finite", not_finite, "the same, the run finishes without a number"),
    World("failures that choose", failures, "the same, the run fails and is not made again"),
    World("divergence by chance", both_diverge, "every run diverges with chance 0.3"),
    World("fewer diverge", fewer_diverge, "60, 30, 10 and 2 % of runs diverge"),
    World("multiplicative noise", multiplicative, "equal means; raw is better in most seeds"),
    World("shared test set", test_set, "truth on this test set, which all seeds share"),
    World("two versions", two_versions, "the defect of another commit; nothing may be decided"),
    World("steps, no effect", step_counts((500, 500, 500, 500)), "equal medians of steps to a target"),
    World("steps, some never", step_counts((500, 450, 400, 300), 0.15), "15 % of runs never reach it"),
    World("five looks, no effect", shifted((0, 0, 0), 0.3), "judged after every seed, as planned", (8, 11, 14, 17, 20), True),
    World("a look at every seed", shifted((0, 0, 0), 0.3, "skewed"), "the same with sixteen looks", tuple(range(5, 21)), True),
    World("looks and survivors", survivors, "the same where arms diverge", (8, 11, 14, 17, 20), True),
    World("at the limits, normal", shifted((0, -0.1, -0.3), 0.2), "medians at the edges of margins and bands"),
    World("at the limits, skewed", shifted((0, -0.1, -0.3), 0.2, "skewed"), "the same, skewed about the median"),
    World("small effect", shifted((-0.05, -0.15, -0.25), 0.3), "better by less than one spread"),
    World("large effect", shifted((-0.3, -0.6, -0.9), 0.15), "every step two spreads"),
    World("best inside", shifted((-0.5, -0.9, -0.3), 0.15), "the third of four rows is best"),
    World("best beside", shifted((-0.9, -0.5, -0.3), 0.15), "the second is, where the third is expected"),
)  # fmt: skip
