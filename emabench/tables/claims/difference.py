"""`type: difference`: a row is better or worse than another, or equal to it within a margin."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import model_validator

from emabench.tables.claim import Measured, Pair, Rows, size_of, to_log
from emabench.tables.parts import Amount, OneAmount
from emabench.tables.verdict import Expectation, Kind, Outcome, PreparedClaim, settled


class Difference(Pair):
    """`row` is better or worse than `over` by more than `margin`, or equal to it within `margin`."""

    type: Literal["difference"]
    margin: OneAmount = Amount(0.0, relative=False)
    article: Literal["better", "worse", "equal"] | None = None
    literature: Literal["better", "worse", "equal"] | None = None

    @model_validator(mode="after")
    def _margin(self) -> Self:
        if self.margin.value < 0 or ("equal" in (self.article, self.literature) and not self.margin.value):
            raise ValueError("equality is judged within a margin above zero; set margin")
        return self

    def estimand(self, label: str, rows: Rows) -> str:
        pair = f"{rows[self.row].label} and {rows[self.over].label}"
        by = f" by more than {size_of(self.margin)}" if self.margin.value else ""
        words = []
        if {"better", "worse"} & {self.article, self.literature}:
            words.append(
                f"in more than half of all seeds, {self.called(label)} differs in that direction{by}"
            )
        if "equal" in (self.article, self.literature):
            words.append(
                f"in a typical (median) seed, {self.called(label)} differs by less than {size_of(self.margin)}"
            )
        return f"{'; '.join(words)} ({pair}, seed by seed)"

    def prepare(self, measured: Measured) -> PreparedClaim:
        x = measured.gains(self.row, self.over, self.margin.relative)
        effect = measured.effect(self.row, self.over, self.margin.relative, named=False)
        margin, size = to_log(self.margin), size_of(self.margin)
        by_expected = {
            "better": lambda: _better(measured, x, margin, size, "better", "worse"),
            "worse": lambda: _better(measured, [-each for each in x], margin, size, "worse", "better"),
            "equal": lambda: _equal(measured, x, margin, size),
        }
        expected = self.expectations(measured.rows)
        ready = {each: by_expected[each]() for each in set(expected.values())}
        return PreparedClaim([effect], {who: ready[each] for who, each in expected.items()})


def _better(
    measured: Measured, x: list[float], margin: float, size: str, right: str, wrong: str
) -> Expectation:
    """Better by more than the margin. Of "better" and "not better" one is false; "worse" takes a fifth of the level."""
    some, enough = measured.most(x, above=0.0), measured.most(x, above=margin)
    too_little, opposite = measured.at_most(x, margin), measured.most(x, below=0.0)
    by = f" by more than {size}" if size else ""
    outcomes = [
        Outcome(Kind.HOLDS, [enough], f"{right}{by} in most seeds"),
        Outcome(Kind.OPPOSITE, [opposite], f"{wrong} in most seeds"),
    ]
    if size:
        outcomes += [
            Outcome(
                Kind.NO_EFFECT, [some, too_little], f"{right} in most seeds, by less than {size}", size=size
            ),
            Outcome(Kind.NO_EFFECT, [too_little], f"not {right}{by} in most seeds", size=size, final=False),
            Outcome(
                Kind.PARTLY, [some], f"whether{by} is open", part="direction seen, size open", final=False
            ),
        ]
    else:
        outcomes.append(Outcome(Kind.FAILS, [too_little], f"not {right} in most seeds", final=False))
    return Expectation(
        outcomes, [settled(outcomes, {some: 0.8, enough: 0.8, too_little: 1.0, opposite: 0.2})]
    )


def _equal(measured: Measured, x: list[float], margin: float, size: str) -> Expectation:
    """A typical seed within the margin: both ends at the full level, each way out at half."""
    low, high = measured.at_least(x, -margin), measured.at_most(x, margin)
    better, worse = measured.most(x, above=margin), measured.most(x, below=-margin)
    outcomes = [
        Outcome(Kind.HOLDS, [low, high], f"a typical seed differs by less than {size}"),
        Outcome(Kind.FAILS, [better], f"better by more than {size} in most seeds"),
        Outcome(Kind.FAILS, [worse], f"worse by more than {size} in most seeds"),
    ]
    assert math.isfinite(margin)
    return Expectation(outcomes, [settled(outcomes, {low: 1.0, high: 1.0, better: 0.5, worse: 0.5})])
