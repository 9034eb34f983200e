"""Is a change within a band around what is expected? What claims about a size share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from emabench.tables.claim import Measured, to_log
from emabench.tables.parts import Amount
from emabench.tables.statistics import Most, Statement
from emabench.tables.verdict import Expectation, Kind, Outcome, settled

Band = tuple[Amount, Amount]


def within(
    measured: Measured,
    x: Sequence[float],
    expectations: Mapping[str, Band],
    tolerance: Amount,
    *,
    change: bool,
    at_most: Sequence[float] | None = None,
) -> dict[str, Expectation]:
    """Is x within a band around what is expected in a typical seed; if not, is its sign at least right?

    `change`: x are changes, which have a direction; else they are values. `at_most`: where x are known to lie between
    two values alone, x is the lower of them and this the upper; a seed bears out what both do.
    """
    upper = x if at_most is None else at_most
    ready = {
        band: _within(measured, x, upper, band, tolerance, change) for band in set(expectations.values())
    }
    return {who: ready[band] for who, band in expectations.items()}


def band_words(expectations: Mapping[str, Band], tolerance: Amount, *, change: bool) -> str:
    """The bands in words, for the estimand."""
    margin = str(tolerance).lstrip("+")
    return " or ".join(
        dict.fromkeys(f"{_range(band, change)} (± {margin})" for band in expectations.values())
    )


def _within(
    measured: Measured,
    x: Sequence[float],
    upper: Sequence[float],
    band: Band,
    tolerance: Amount,
    change: bool,
) -> Expectation:
    """The median lies in one interval of those that 0 and the band's ends cut; each state's false statements add to 1."""
    low, high = to_log(band[0], -tolerance.value), to_log(band[1], tolerance.value)
    expected = _range(band, change)
    shares: dict[Statement, float] = {}

    def use(statement: Most, share: float) -> Most:
        shares[statement] = share
        return statement

    positive = low + high > 0
    directed = change and not low <= 0 <= high
    ends = 0.8 if directed else 1.0
    inside: list[Statement] = []
    beyond: list[tuple[Statement, bool]] = []
    if math.isfinite(low):
        inside.append(use(measured.at_least(x, low), ends))
        beyond.append((use(measured.most(upper, below=low), 0.5), not positive))
    if math.isfinite(high):
        inside.append(use(measured.at_most(upper, high), ends))
        beyond.append((use(measured.most(x, above=high), 0.5), positive))
    outcomes = [Outcome(Kind.HOLDS, inside, f"{expected} within the tolerance in a typical seed")]
    if directed:
        up, down = measured.most(x, above=0.0), measured.most(upper, below=0.0)
        right, wrong = (up, down) if positive else (down, up)
        use(right, 0.8)
        use(wrong, 0.2)
        outcomes.append(Outcome(Kind.OPPOSITE, [wrong], f"the other way round; expected {expected}"))
        for statement, larger in beyond:
            word = "larger" if larger else "smaller"
            why = f"a {word} change than {expected}"
            outcomes.append(Outcome(Kind.PARTLY, [right, statement], why, part=f"direction seen, {word}"))
        for statement, larger in beyond:
            if not larger:  # smaller, and the direction not shown: it may be none at all
                outcomes.append(
                    Outcome(Kind.FAILS, [statement], f"a smaller change than {expected}", final=False)
                )
        outcomes.append(
            Outcome(
                Kind.PARTLY, [right], f"expected {expected}", part="direction seen, size open", final=False
            )
        )
    else:
        for statement, larger in beyond:
            if change:
                why = f"a {'larger' if larger else 'smaller'} change than {expected}"
            else:
                why = f"{'above' if larger == positive else 'below'} {expected}"
            outcomes.append(Outcome(Kind.FAILS, [statement], why))
    return Expectation(outcomes, [settled(outcomes, shares)])


def _range(expected: Band, change: bool) -> str:
    low, high = (str(each) if change else f"{each.value:.4g}" for each in expected)
    return low if low == high else f"{low} to {high}"
