"""From a claim and the measured rows to a verdict.

A claim is turned into statements about means over seeds ("FID falls by more than 30 %"). Which of them are shown
is decided for the whole table at once (`statistics.holm`); a verdict follows from what is shown:

reproduced      what is claimed is shown, its size within the tolerance
direction only  the direction is shown, the size is another or not shown yet
contradicted    it is shown that the claim does not hold: the other way round, or not by so much
undecided       neither; with the number of seeds that would decide, were effect and spread as seen so far
not comparable  the claim is about values that this scale, or what was measured with, changes
not run         there is nothing to judge it by
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import pairwise

from emabench.tables import spec
from emabench.tables.statistics import (
    EXACT_UP_TO,
    Above,
    AllOf,
    AnyOf,
    Estimate,
    Rarer,
    Side,
    Statement,
    below,
    bootstrap,
    estimate,
    sign_flip_above,
)


class Kind(StrEnum):
    """What can be said of a claim."""

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

    def _shown(self, found: Estimate | None) -> Estimate:
        assert found  # an effect has values
        return found.map(math.expm1) if self.relative else found


@dataclass(frozen=True)
class Outcome:
    """A verdict that holds where all of `shown` are shown."""

    kind: Kind
    shown: Sequence[Statement]
    why: str


@dataclass(frozen=True)
class Test:
    """A claim made ready for judging: the effects seen, the statements to be tested, and what follows from them."""

    claim: spec.AnyClaim
    effects: Sequence[Effect] = ()
    sides: Sequence[Side] = ()
    outcomes: Mapping[str, Sequence[Outcome]] = field(
        default_factory=dict
    )  # by who expects; the first that holds
    without: Verdict | None = None  # instead of a test: why there is none

    def verdicts(self, table: spec.Table, shown: set[int], level: float) -> dict[str, Verdict]:
        """By who expects, the verdict, given the statements that are shown; `level` is a side's share of alpha."""
        if self.without:
            return dict.fromkeys(self.claim.expectations(table), self.without)
        return {who: _decide(outcomes, shown, level) for who, outcomes in self.outcomes.items()}


def _decide(outcomes: Sequence[Outcome], shown: set[int], level: float) -> Verdict:
    for outcome in outcomes:
        if all(id(statement) in shown for statement in outcome.shown):
            return Verdict(outcome.kind, outcome.why)
    seeds = min(max(statement.seeds(level) for statement in outcome.shown) for outcome in outcomes)
    return Verdict(Kind.UNDECIDED, "", seeds)


@dataclass(frozen=True)
class Values:
    """What a claim is judged by: numbers by row and seed, of finished runs alone."""

    by_row: Mapping[str, Mapping[int, float]]
    higher: bool  # is better
    tracks: Mapping[str, Mapping[int, Sequence[tuple[int, float]]]] = field(
        default_factory=dict
    )  # along the run
    target: float | None = None

    def seeds(self, rows: Sequence[str]) -> list[int]:
        """The seeds that all of these rows have."""
        return sorted(set.intersection(*(set(self.by_row.get(row, {})) for row in rows)))


class Unfit(ValueError):
    """These values cannot be judged so; the message says why."""


def prepare(claim: spec.AnyClaim, values: Values, table: spec.Table) -> Test:
    """The test of a claim on these values."""
    builders: dict[type, Callable[..., Test]] = {
        spec.Order: _order,
        spec.Difference: _difference,
        spec.Gain: _gain,
        spec.StepsToTarget: _steps,
        spec.Diverged: _diverged,
        spec.Optimum: _optimum,
        spec.Value: _value,
    }
    if not values.seeds(claim.rows()):
        return Test(claim, without=Verdict(Kind.NOT_RUN, "no seed has all the rows it needs"))
    try:
        return builders[type(claim)](claim, values, table)
    except Unfit as error:
        return Test(claim, without=Verdict(Kind.NOT_COMPARABLE, str(error)))


# -- one claim type after the other -----------------------------------------------------------------------------


def _difference(claim: spec.Difference, values: Values, table: spec.Table) -> Test:
    x = _gains(claim.row, claim.over, values, claim.margin.relative)
    margin = _to_log(claim.margin)
    up = [Above(x, threshold) for threshold in sorted({-margin, 0.0, margin})]
    down = [below(x, threshold) for threshold in sorted({-margin, 0.0, margin}, reverse=True)]
    above, under = {s.threshold: s for s in up}, {-s.threshold: s for s in down}
    size = f"{claim.margin}".lstrip("+") if margin else ""
    outcomes: dict[str, list[Outcome]] = {}
    for who, expected in claim.expectations(table).items():
        if expected == "equal":
            outcomes[who] = [
                Outcome(Kind.REPRODUCED, [above[-margin], under[margin]], f"equal within {size}"),
                Outcome(Kind.CONTRADICTED, [above[margin]], f"better by more than {size}"),
                Outcome(Kind.CONTRADICTED, [under[-margin]], f"worse by more than {size}"),
            ]
            continue
        right, wrong, edge = (above, under, margin) if expected == "better" else (under, above, -margin)
        outcomes[who] = [
            Outcome(Kind.REPRODUCED, [right[0.0]], expected),
            Outcome(Kind.CONTRADICTED, [wrong[edge]], f"not {expected}" + (f" by {size}" if size else "")),
        ]
        if margin:
            outcomes[who].insert(
                0, Outcome(Kind.DIRECTION, [right[0.0], wrong[edge]], f"{expected}, by less than {size}")
            )
    return Test(claim, [_effect(claim, values, claim.margin.relative)], [up, down], outcomes)


def _gain(claim: spec.Gain, values: Values, table: spec.Table) -> Test:
    x = _changes(claim.row, claim.over, values, claim.tolerance.relative)
    effect = _effect(claim, values, claim.tolerance.relative)
    return _within(claim, x, effect, claim.expectations(table), claim.tolerance, directed=True)


def _value(claim: spec.Value, values: Values, table: spec.Table) -> Test:
    numbers = values.by_row[claim.row]
    x = [numbers[seed] for seed in sorted(numbers)]
    expected = claim.expectations(table)
    tolerance = claim.tolerance
    if tolerance.relative:
        largest = max((abs(end.value) for ends in expected.values() for end in ends), default=0.0)
        tolerance = spec.Amount(tolerance.value * largest, relative=False)
    effect = Effect(table.rows[claim.row].label, x, relative=False)
    return _within(claim, x, effect, expected, tolerance, directed=False)


def _diverged(claim: spec.Diverged, values: Values, table: spec.Table) -> Test:
    """`values` are 1 for a run that diverged, 0 for one that finished."""
    mine, other = (list(values.by_row[row].values()) for row in (claim.row, claim.over))
    fewer, more = Rarer(mine, other), Rarer(other, mine)
    x = [
        values.by_row[claim.row][seed] - values.by_row[claim.over][seed]
        for seed in values.seeds(claim.rows())
    ]
    what = f"{sum(mine):.0f} of {len(mine)} runs diverged, {sum(other):.0f} of {len(other)} of {table.rows[claim.over].label}"
    outcomes = {}
    for who, expected in claim.expectations(table).items():
        right, wrong = (fewer, more) if expected == "fewer" else (more, fewer)
        outcomes[who] = [
            Outcome(Kind.REPRODUCED, [right], expected),
            Outcome(Kind.CONTRADICTED, [wrong], f"not {expected}"),
        ]
    effect = Effect(what, x, relative=False)
    if not sum(mine) + sum(other):
        return Test(claim, [effect], without=Verdict(Kind.UNDECIDED, "no run diverged"))
    return Test(claim, [effect], [[fewer], [more]], outcomes)


def _steps(claim: spec.StepsToTarget, values: Values, table: spec.Table) -> Test:
    target = values.target
    if target is None:
        raise Unfit("there is no target at this scale")
    seeds = sorted(set(values.tracks.get(claim.row, {})) & set(values.tracks.get(claim.over, {})))
    if not seeds:
        raise Unfit("the runs were not measured along the way; set evaluate.every")
    x, missed = [], dict.fromkeys((claim.row, claim.over), 0)
    for seed in seeds:
        reached = [_first(values.tracks[row][seed], target, values.higher) for row in (claim.row, claim.over)]
        if reached == [None, None]:
            raise Unfit(
                f"seed {seed} reaches the target of {target:.4g} in neither row: train longer, or set it lower"
            )
        for row, step in zip((claim.row, claim.over), reached, strict=True):
            missed[row] += step is None
            if step == values.tracks[row][seed][0][0]:
                raise Unfit(
                    f"{table.rows[row].label} is past the target of {target:.4g} when first measured (seed {seed}): "
                    "when it got there is not known"
                )
        # Never reached counts as reached at the last measurement, which is a bound.
        last = max(values.tracks[claim.row][seed][-1][0], values.tracks[claim.over][seed][-1][0])
        mine, other = (last if step is None else step for step in reached)
        x.append(math.log(mine / other))
    what = f"steps to {target:.4g}, {table.rows[claim.row].label} over {table.rows[claim.over].label}"
    if all(missed.values()):
        raise Unfit(
            "some seeds reach the target in the one row alone, some in the other: train longer, or set it lower"
        )
    if never := sum(missed.values()):
        what += f" ({never} of {len(seeds)} seeds never reached it)"
    effect = Effect(what, x, relative=True)
    test = _within(claim, x, effect, claim.expectations(table), claim.tolerance, directed=True)
    if not never:
        return test
    # The row is later than it seems, or the other is: only what is shown on that side is shown.
    sure = set(map(id, test.sides[0 if missed[claim.row] else 1]))
    outcomes = {
        who: [outcome for outcome in found if all(id(statement) in sure for statement in outcome.shown)]
        for who, found in test.outcomes.items()
    }
    return replace(test, outcomes=outcomes)


def _order(claim: spec.Order, values: Values, table: spec.Table) -> Test:
    rows = claim.along
    seeds = values.seeds(rows)
    steps = [_gains(after, before, values, claim.margin.relative) for before, after in pairwise(rows)]
    # The trend, per seed: the contrast of rows with equally spaced weights.
    scale = math.log if claim.margin.relative else float
    sign = 1 if values.higher else -1
    _check_positive(claim.margin.relative, rows, values)
    middle = (len(rows) - 1) / 2
    trend = [
        sum((i - middle) * sign * scale(values.by_row[row][seed]) for i, row in enumerate(rows))
        for seed in seeds
    ]
    margin = _to_log(claim.margin)
    sides: list[Side] = []
    outcomes: dict[str, list[Outcome]] = {}
    made: dict[str, list[Outcome]] = {}
    for who, expected in claim.expectations(table).items():
        if expected not in made:
            turn = 1 if expected == "better" else -1
            trending = Above([turn * each for each in trend])
            every = AllOf([Above([turn * each for each in step]) for step in steps])
            back = AnyOf([Above([-turn * each for each in step], margin) for step in steps])
            sides += [[trending, every], [back]]
            made[expected] = [
                Outcome(Kind.CONTRADICTED, [back], _where_back(steps, turn, rows, table)),
                Outcome(Kind.REPRODUCED, [trending, every], f"{expected} with every step"),
                Outcome(
                    Kind.DIRECTION,
                    [trending],
                    f"{expected} along the rows as a whole, not shown for every step",
                ),
            ]
            if margin:
                whole = [turn * each for each in _gains(rows[-1], rows[0], values, claim.margin.relative)]
                flat = below(whole, margin)
                size = f"{claim.margin}".lstrip("+")
                sides.append([flat])
                made[expected].insert(
                    1, Outcome(Kind.DIRECTION, [trending, flat], f"{expected}, by less than {size} in all")
                )
                made[expected].append(Outcome(Kind.CONTRADICTED, [flat], f"not {expected} by {size} in all"))
        outcomes[who] = made[expected]
    effects = [
        _effect_of(after, before, values, claim.margin.relative, table) for before, after in pairwise(rows)
    ]
    return Test(claim, effects, sides, outcomes)


def _optimum(claim: spec.Optimum, values: Values, table: spec.Table) -> Test:
    rows, inside = claim.along, claim.along[1:-1]
    ends, relative = (rows[0], rows[-1]), _positive(rows, values)

    def better(row: str, over: str) -> Statement:
        return Above(_gains(row, over, values, relative))

    peak = {row: AllOf([better(row, end) for end in ends]) for row in inside}
    anywhere = AnyOf(list(peak.values()))
    at_end = AnyOf([AllOf([better(end, row) for row in inside]) for end in ends])
    sides: list[Side] = [[at_end]]
    outcomes: dict[str, list[Outcome]] = {}
    made: dict[str, list[Outcome]] = {}
    for who, expected in claim.expectations(table).items():
        if str(expected) in made:  # asked once, though two may expect it
            outcomes[who] = made[str(expected)]
            continue
        contradicted = Outcome(Kind.CONTRADICTED, [at_end], "best at an end")
        if expected == "interior":
            sides.append([anywhere])
            outcomes[who] = made[str(expected)] = [
                Outcome(Kind.REPRODUCED, [anywhere], "best inside"),
                contradicted,
            ]
            continue
        others = [row for row in rows if row not in expected]
        here = AnyOf([AllOf([better(row, other) for other in others]) for row in expected])
        elsewhere = [row for row in inside if row not in expected]
        beaten = (
            AnyOf([AllOf([better(other, row) for row in expected]) for other in elsewhere])
            if elsewhere
            else None
        )
        sides.append([anywhere, here])
        outcomes[who] = made[str(expected)] = [
            Outcome(Kind.REPRODUCED, [anywhere, here], "best inside, where expected"),
            Outcome(Kind.DIRECTION, [anywhere], "best inside; not shown to be where expected"),
            contradicted,
        ]
        if beaten:
            sides.append([beaten])
            outcomes[who].insert(0, Outcome(Kind.DIRECTION, [anywhere, beaten], "best inside, but elsewhere"))
    best = max(rows, key=lambda row: _mean(values, row) * (1 if values.higher else -1))
    effects = [_effect_of(best, end, values, relative, table) for end in ends if end != best]
    return Test(claim, effects, sides, outcomes)


# -- what they share ----------------------------------------------------------------------------------------------


def _within(
    claim: spec.AnyClaim,
    x: Sequence[float],
    effect: Effect,
    expectations: Mapping[str, tuple[spec.Amount, spec.Amount]],
    tolerance: spec.Amount,
    directed: bool,
) -> Test:
    """Is the mean of x within a band around what is expected; if not, is its sign at least right?"""
    bands = {
        who: (_to_log(low, -tolerance.value), _to_log(high, tolerance.value))
        for who, (low, high) in expectations.items()
    }
    thresholds = {end for band in bands.values() for end in band} | ({0.0} if directed else set())
    finite = sorted(each for each in thresholds if math.isfinite(each))
    above = {each: Above(x, each) for each in finite}
    under = {each: below(x, each) for each in finite}
    sides = [list(above.values()), list(reversed(under.values()))]
    outcomes: dict[str, list[Outcome]] = {}
    for who, (low, high) in bands.items():
        inside = [side[end] for side, end in ((above, low), (under, high)) if end in side]
        expected = _say_range(expectations[who], claim)
        beyond = [
            (side[end], f"{_beyond(claim, side is above, low + high > 0)} {expected}")
            for side, end in ((under, low), (above, high))
            if end in side
        ]
        found = [Outcome(Kind.REPRODUCED, inside, f"{expected} within the tolerance")]
        if directed and not low <= 0 <= high:
            right, wrong = (above[0.0], under[0.0]) if low > 0 else (under[0.0], above[0.0])
            found += [Outcome(Kind.DIRECTION, [right, each], why) for each, why in beyond]
            found += [Outcome(Kind.DIRECTION, [right], f"the size is not settled; expected {expected}")]
            found += [Outcome(Kind.CONTRADICTED, [wrong], f"the other way round; expected {expected}")]
        found += [Outcome(Kind.CONTRADICTED, [each], why) for each, why in beyond]
        outcomes[who] = found
    return Test(claim, [effect], sides, outcomes)


def _changes(row: str, over: str, values: Values, relative: bool) -> list[float]:
    """By seed: how the row differs from the other, as a logarithm of the ratio where `relative`."""
    _check_positive(relative, [row, over], values)
    mine, other = values.by_row[row], values.by_row[over]
    seeds = values.seeds([row, over])
    if relative:
        return [math.log(mine[seed] / other[seed]) for seed in seeds]
    return [mine[seed] - other[seed] for seed in seeds]


def _gains(row: str, over: str, values: Values, relative: bool) -> list[float]:
    """The same, positive where the row is better."""
    sign = 1 if values.higher else -1
    return [sign * change for change in _changes(row, over, values, relative)]


def _positive(rows: Sequence[str], values: Values) -> bool:
    return all(value > 0 for row in rows for value in values.by_row[row].values())


def _check_positive(relative: bool, rows: Sequence[str], values: Values) -> None:
    if relative and not _positive(rows, values):
        raise Unfit("a relative change needs values above zero")


def _effect(claim: spec.Pair, values: Values, relative: bool) -> Effect:
    return Effect("", _changes(claim.row, claim.over, values, relative), relative)


def _effect_of(row: str, over: str, values: Values, relative: bool, table: spec.Table) -> Effect:
    what = f"{table.rows[row].label} over {table.rows[over].label}"
    return Effect(what, _changes(row, over, values, relative), relative)


def _to_log(amount: spec.Amount, shift: float = 0.0) -> float:
    """An amount, moved by `shift`, on the scale that is tested: relative changes as logarithms of ratios."""
    value = amount.value + shift
    if not amount.relative:
        return value
    return math.log1p(value) if value > -1 else -math.inf


def _where_back(steps: Sequence[Sequence[float]], turn: int, rows: Sequence[str], table: spec.Table) -> str:
    """Which step goes back furthest, in words."""
    worst = min(range(len(steps)), key=lambda i: turn * sum(steps[i]) / len(steps[i]))
    return f"it goes back from {table.rows[rows[worst]].label} to {table.rows[rows[worst + 1]].label}"


def _say_range(expected: tuple[spec.Amount, spec.Amount], claim: spec.AnyClaim) -> str:
    low, high = (f"{each.value:.4g}" if isinstance(claim, spec.Value) else str(each) for each in expected)
    return low if low == high else f"{low} to {high}"


def _beyond(claim: spec.AnyClaim, above: bool, positive: bool) -> str:
    """On which side of what is expected, in words."""
    if isinstance(claim, spec.Value):
        return "above" if above else "below"
    return "a larger change than" if above == positive else "a smaller change than"


def _mean(values: Values, row: str) -> float:
    numbers = values.by_row[row].values()
    return sum(numbers) / len(numbers)


def _first(track: Sequence[tuple[int, float]], target: float, higher: bool) -> int | None:
    """The first step at which the target is reached."""
    return next((step for step, value in track if (value >= target if higher else value <= target)), None)
