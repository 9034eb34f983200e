"""`type: order`: the metric gets better (or worse) with every step along the rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from emabench.tables.claim import Claim, Measured, Rows, size_of, to_log
from emabench.tables.parts import Amount, OneAmount
from emabench.tables.statistics import AllOf, AnyOf, Family, Statement
from emabench.tables.verdict import Expectation, Kind, Outcome, PreparedClaim


class Order(Claim):
    """The metric gets better (or worse) with every step along the rows.

    A step back within `margin` does not refute it, and less than `margin` from the first row to the last is no gain.
    """

    families: ClassVar[int] = 2  # every step, and from the first row to the last

    type: Literal["order"]
    along: Annotated[list[str], Field(min_length=2)]
    margin: OneAmount = Amount(0.0, relative=False)
    article: Literal["better", "worse"] | None = None
    literature: Literal["better", "worse"] | None = None

    def rows(self) -> list[str]:
        return self.along

    def estimand(self, label: str, rows: Rows) -> str:
        words = " to ".join(rows[row].label for row in self.along)
        return (
            f"for each step from {words}: in more than half of all seeds {self.called(label)} changes in that "
            "direction, seed by seed"
        )

    def prepare(self, measured: Measured) -> PreparedClaim:
        relative = self.margin.relative
        pairs = list(pairwise(self.along))
        steps = [measured.gains(after, before, relative) for before, after in pairs]
        overall = measured.gains(self.along[-1], self.along[0], relative)
        expected = self.expectations(measured.rows)
        ready = {
            each: self._ordered(measured, steps, overall, each, 1 if each == "better" else -1)
            for each in set(expected.values())
        }
        effects = [measured.effect(after, before, relative) for before, after in pairs]
        return PreparedClaim(effects, {who: ready[each] for who, each in expected.items()})

    def _ordered(
        self, measured: Measured, steps: Sequence[list[float]], overall: list[float], expected: str, turn: int
    ) -> Expectation:
        margin, size = to_log(self.margin), size_of(self.margin)
        steps, overall = [[turn * x for x in step] for step in steps], [turn * x for x in overall]
        every = AllOf([measured.most(step, above=0.0) for step in steps])
        if size:
            back: Statement = AnyOf([measured.most(step, below=-margin) for step in steps])
        else:
            back = AnyOf([measured.at_most(step, 0.0) for step in steps])
        trend, opposite = measured.most(overall, above=0.0), measured.most(overall, below=0.0)
        flat = measured.at_most(overall, margin)
        where = self._where_back(steps, measured.rows)
        wrong = "worse" if expected == "better" else "better"
        outcomes = [
            Outcome(Kind.HOLDS, [every], f"{expected} with every step in most seeds"),
            Outcome(Kind.OPPOSITE, [opposite], f"{wrong} from the first row to the last in most seeds"),
        ]
        if size:
            why = f"not {expected} by more than {size} from the first row to the last"
            outcomes.append(Outcome(Kind.NO_EFFECT, [flat], why, size=size))
        outcomes += [
            Outcome(
                Kind.PARTLY,
                [trend, back],
                f"{expected} from the first row to the last; {where}",
                part="first to last seen, not every step",
            ),
            Outcome(Kind.FAILS, [back], where, final=False),
            Outcome(
                Kind.PARTLY,
                [trend],
                f"{expected} from the first row to the last",
                part="first to last seen, steps open",
                final=False,
            ),
        ]
        # With a margin both "every step" and "a step back" may be false, without one just one of them is.
        by_step = Family({every: 0.8, back: 0.2} if size else {every: 1.0, back: 1.0}, [[every], [back]])
        in_all = Family({trend: 0.8, opposite: 0.2, flat: 1.0}, [[trend, flat], [opposite]])
        return Expectation(outcomes, [by_step, in_all])

    def _where_back(self, steps: Sequence[Sequence[float]], rows: Rows) -> str:
        """Which step goes back furthest, in words."""
        worst = min(range(len(steps)), key=lambda i: median(steps[i]) if steps[i] else 0.0)
        before, after = (rows[self.along[i]].label for i in (worst, worst + 1))
        return f"in most seeds it does not improve from {before} to {after}"
