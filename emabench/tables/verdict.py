"""What can be said of a claim, and a claim made ready for judging.

A claim is turned into statements about means over seeds ("FID falls by more than 30 %"). Which of them are shown
is decided for the whole table at once (`statistics.holm`); a verdict follows from what is shown.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from emabench.tables.statistics import (
    EXACT_UP_TO,
    Estimate,
    Side,
    Statement,
    bootstrap,
    estimate,
    sign_flip_above,
)


class Kind(StrEnum):
    """What can be said of a claim.

    reproduced      what is claimed is shown, its size within the tolerance
    direction only  the direction is shown, the size is another or not shown yet
    contradicted    it is shown that the claim does not hold: the other way round, or not by so much
    undecided       neither; with the number of seeds that would decide, were effect and spread as seen so far
    not comparable  the claim is about values that this scale, or what was measured with, changes
    not run         there is nothing to judge it by
    """

    REPRODUCED = "reproduced"
    DIRECTION = "direction only"
    CONTRADICTED = "contradicted"
    UNDECIDED = "undecided"
    NOT_COMPARABLE = "not comparable"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Verdict:
    """What the measurements say of one expectation, and why. `seeds` would decide what is undecided, if known."""

    kind: Kind
    why: str = ""
    seeds: float | None = None


@dataclass(frozen=True)
class Effect:
    """Something measured that a claim is about: what, and its values by seed on the scale that is tested.

    `relative`: those are logarithms of ratios; what is shown are relative changes (−0.38 for −38 %).
    """

    what: str
    tested: Sequence[float]
    relative: bool

    @property
    def estimate(self) -> Estimate:
        """Mean and t-interval."""
        return self._shown(estimate(self.tested))

    @property
    def bootstrap(self) -> Estimate:
        """The same by bootstrap."""
        return self._shown(bootstrap(self.tested))

    @property
    def sign_flip_p(self) -> float | None:
        """Two-sided p of the exact test that there is no effect; None where there are too many seeds for it."""
        if len(self.tested) > EXACT_UP_TO:
            return None
        turned = [-value for value in self.tested]
        return min(1.0, 2 * min(sign_flip_above(self.tested), sign_flip_above(turned)))

    def _shown(self, tested: Estimate | None) -> Estimate:
        assert tested  # an effect has values
        return tested.map(math.expm1) if self.relative else tested


@dataclass(frozen=True)
class Outcome:
    """A verdict that holds where all of `shown` are shown."""

    kind: Kind
    shown: Sequence[Statement]
    why: str


@dataclass(frozen=True)
class PreparedClaim:
    """The effects seen, the statements to be tested, and by who expects, the outcomes: the first that holds.

    `without` is the verdict of a claim that cannot be tested.
    """

    effects: Sequence[Effect] = ()
    sides: Sequence[Side] = ()
    outcomes: Mapping[str, Sequence[Outcome]] = field(default_factory=dict)
    without: Verdict | None = None

    def verdicts(
        self, expecting: Collection[str], shown: Collection[Statement], level: float
    ) -> dict[str, Verdict]:
        """By who expects, the verdict, given the statements that are shown; `level` is a side's share of alpha."""
        if self.without:
            return dict.fromkeys(expecting, self.without)
        return {who: _decide(outcomes, shown, level) for who, outcomes in self.outcomes.items()}


def _decide(outcomes: Sequence[Outcome], shown: Collection[Statement], level: float) -> Verdict:
    for outcome in outcomes:
        if all(statement in shown for statement in outcome.shown):
            return Verdict(outcome.kind, outcome.why)
    seeds = min(max(statement.seeds(level) for statement in outcome.shown) for outcome in outcomes)
    return Verdict(Kind.UNDECIDED, "", seeds)
