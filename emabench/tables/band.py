"""Is a change within a band around what is expected? What claims about a size share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from emabench.tables.claim import to_log
from emabench.tables.parts import Amount
from emabench.tables.statistics import Above, below
from emabench.tables.verdict import Effect, Kind, Outcome, PreparedClaim


def within(
    x: Sequence[float],
    effect: Effect,
    expectations: Mapping[str, tuple[Amount, Amount]],
    tolerance: Amount,
    *,
    change: bool,
) -> PreparedClaim:
    """Is the mean of x within a band around what is expected; if not, is its sign at least right?

    `change`: x are changes, which have a direction; else they are values.
    """
    bands = {
        who: (to_log(low, -tolerance.value), to_log(high, tolerance.value))
        for who, (low, high) in expectations.items()
    }
    thresholds = {end for band in bands.values() for end in band} | ({0.0} if change else set())
    finite = sorted(each for each in thresholds if math.isfinite(each))
    above = {each: Above(x, each) for each in finite}
    under = {each: below(x, each) for each in finite}
    sides = [list(above.values()), list(reversed(under.values()))]
    outcomes: dict[str, list[Outcome]] = {}
    for who, (low, high) in bands.items():
        inside = [side[end] for side, end in ((above, low), (under, high)) if end in side]
        expected = _range(expectations[who], change)
        beyond = [
            (side[end], f"{_beyond(change, side is above, low + high > 0)} {expected}")
            for side, end in ((under, low), (above, high))
            if end in side
        ]
        possible = [Outcome(Kind.REPRODUCED, inside, f"{expected} within the tolerance")]
        if change and not low <= 0 <= high:
            right, wrong = (above[0.0], under[0.0]) if low > 0 else (under[0.0], above[0.0])
            possible += [Outcome(Kind.DIRECTION, [right, each], why) for each, why in beyond]
            possible += [Outcome(Kind.DIRECTION, [right], f"the size is not settled; expected {expected}")]
            possible += [Outcome(Kind.CONTRADICTED, [wrong], f"the other way round; expected {expected}")]
        possible += [Outcome(Kind.CONTRADICTED, [each], why) for each, why in beyond]
        outcomes[who] = possible
    return PreparedClaim([effect], sides, outcomes)


def _range(expected: tuple[Amount, Amount], change: bool) -> str:
    low, high = (str(each) if change else f"{each.value:.4g}" for each in expected)
    return low if low == high else f"{low} to {high}"


def _beyond(change: bool, above: bool, positive: bool) -> str:
    """On which side of what is expected, in words."""
    if not change:
        return "above" if above else "below"
    return "a larger change than" if above == positive else "a smaller change than"
