"""The verdicts on a claim, and a claim prepared for judging.

A claim is turned into statements about most seeds ("FID falls by more than 30 %"). Which of them are shown is
decided for the whole table at once (`statistics.holm`); a verdict follows from what is shown.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median

from emabench.tables.boundary import at_least
from emabench.tables.statistics import Estimate, Family, Statement, estimate


class Kind(StrEnum):
    """The kinds of verdict on a claim. How each is worded depends on the setting, see `report.words`.

    holds           what is claimed is shown
    partly          a part of it is shown; the verdict names what is open or otherwise
    no effect       an effect of the size claimed is ruled out
    opposite        the other way round is shown
    fails           it is shown not to hold in most seeds, without the other way round being shown
    undecided       none of these
    not comparable  it cannot be judged by these runs
    not run         there is nothing to judge it by
    cannot hold     an argument refutes it, whatever is measured
    """

    HOLDS = "holds"
    PARTLY = "partly"
    NO_EFFECT = "no effect"
    OPPOSITE = "opposite"
    FAILS = "fails"
    UNDECIDED = "undecided"
    NOT_COMPARABLE = "not comparable"
    NOT_RUN = "not run"
    CANNOT_HOLD = "cannot hold"


DECIDED = (Kind.HOLDS, Kind.PARTLY, Kind.NO_EFFECT, Kind.OPPOSITE, Kind.FAILS)


@dataclass(frozen=True)
class Verdict:
    """What the measurements say of one expectation, and why.

    part: of a claim that holds partly, what is shown and what is open. size: below which there is no effect.
    seeds: how many would decide what is undecided. overview: it holds beside all claims of all tables too.
    """

    kind: Kind
    why: str = ""
    part: str = ""
    size: str = ""
    seeds: float | None = None
    overview: bool = False


@dataclass(frozen=True)
class Effect:
    """Something measured that a claim is about: what, and its values by seed on the scale that is tested.

    `relative`: those are logarithms of ratios; what is shown are relative changes (−0.38 for −38 %).
    `higher`: larger values are better; None where neither way is. Infinite values are of seeds in which one of two
    rows has none (it counts as the worst), NaN of seeds in which both have none.
    """

    what: str
    tested: Sequence[float]
    relative: bool
    higher: bool | None = None
    seeds: Sequence[int] = ()

    @property
    def shown(self) -> list[float]:
        """The values that are numbers, as they are shown."""
        numbers = [value for value in self.tested if math.isfinite(value)]
        return [math.expm1(value) for value in numbers] if self.relative else numbers

    @property
    def estimate(self) -> Estimate | None:
        """Mean and t-interval of the seeds that have a number: description, which decides nothing."""
        mean = estimate([value for value in self.tested if math.isfinite(value)])
        return mean.map(math.expm1) if mean and self.relative else mean

    @property
    def median(self) -> float | None:
        """Of all seeds, where that is a number."""
        values = [value for value in self.tested if not math.isnan(value)]
        middle = median(values) if values else math.nan
        if not math.isfinite(middle):
            return None
        return math.expm1(middle) if self.relative else middle

    @property
    def better(self) -> int:
        """In how many seeds the change is for the better."""
        sign = 1 if self.higher else -1
        return sum(sign * value > 0 for value in self.tested)

    @property
    def worse(self) -> int:
        sign = 1 if self.higher else -1
        return sum(sign * value < 0 for value in self.tested)

    @property
    def next_seed(self) -> float:
        """With at least this chance (95 %) a new seed changes the way that most of these do."""
        return at_least(max(self.better, self.worse), len(self.tested))

    @property
    def at_odds(self) -> bool:
        """Does the mean change the other way than most seeds do?"""
        mean = self.estimate
        if mean is None or self.higher is None or self.better == self.worse:
            return False
        sign = 1 if self.higher else -1
        return (sign * mean.mean > 0) != (self.better > self.worse)


@dataclass(frozen=True)
class Outcome:
    """A verdict that holds where all of `shown` are shown. `final`: no stronger verdict can follow."""

    kind: Kind
    shown: Sequence[Statement]
    why: str
    part: str = ""
    size: str = ""
    final: bool = True


@dataclass(frozen=True)
class Expectation:
    """The outcomes of one expectation, the first that holds counts, and the families of statements behind them."""

    outcomes: Sequence[Outcome]
    families: Sequence[Family]

    def verdict(self, shown: Collection[Statement], level: float, left: int) -> Verdict:
        """The verdict, given the statements that are shown."""
        for outcome in self.outcomes:
            if all(statement in shown for statement in outcome.shown):
                return Verdict(outcome.kind, outcome.why, outcome.part, outcome.size)
        shares = {statement: share for family in self.families for statement, share in family.shares.items()}
        needed = [
            max(statement.seeds(level * shares.get(statement, 1.0), left) for statement in outcome.shown)
            for outcome in self.outcomes
        ]
        return Verdict(Kind.UNDECIDED, seeds=min(needed, default=math.inf))


def settled(outcomes: Sequence[Outcome], shares: Mapping[Statement, float]) -> Family:
    """A family that is done when a final outcome is reached."""
    return Family(shares, [outcome.shown for outcome in outcomes if outcome.final])


@dataclass(frozen=True)
class PreparedClaim:
    """The effects seen, and by who expects, what follows from which statements.

    `without` is the verdict of a claim that cannot be tested.
    """

    effects: Sequence[Effect] = ()
    expectations: Mapping[str, Expectation] = field(default_factory=dict)
    without: Verdict | None = None
    lines: Sequence[str] = ()  # what else a reader has to know of these seeds
