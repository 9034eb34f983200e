"""`type: optimum`: along the rows the metric is best inside, or at the rows that are named."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from emabench.tables.claim import Claim, Measured, Rows
from emabench.tables.statistics import AllOf, AnyOf, Statement
from emabench.tables.verdict import Effect, Expectation, Kind, Outcome, PreparedClaim, settled


class Optimum(Claim):
    """Along the rows the metric is best inside, not at either end; or at the rows that the expectation names."""

    type: Literal["optimum"]
    along: Annotated[list[str], Field(min_length=3)]
    article: Literal["interior"] | list[str] | None = None
    literature: Literal["interior"] | list[str] | None = None

    def rows(self) -> list[str]:
        return self.along

    @model_validator(mode="after")
    def _inside(self) -> Self:
        for expected in (self.article, self.literature):
            for row in expected if isinstance(expected, list) else []:
                if row not in self.along[1:-1]:
                    raise ValueError(f"{row!r} is not inside along; an optimum is expected between its ends")
        return self

    def estimand(self, label: str, rows: Rows) -> str:
        first, last = rows[self.along[0]].label, rows[self.along[-1]].label
        inside = (
            f"some row between {first} and {last} has a better {self.called(label)} than either, each in more than "
            "half of all seeds"
        )
        named = [e for e in self.expectations(rows).values() if e != "interior"]
        places = dict.fromkeys(" or ".join(rows[row].label for row in each) for each in named)
        return inside + "".join(f"; and {place} better than every row not named" for place in places)

    def prepare(self, measured: Measured) -> PreparedClaim:
        expected = self.expectations(measured.rows)
        ready = {str(each): self._best_inside(measured, each) for each in expected.values()}
        return PreparedClaim(
            self._effects(measured), {who: ready[str(each)] for who, each in expected.items()}
        )

    def _best_inside(self, measured: Measured, expected: str | list[str]) -> Expectation:
        along, inside = self.along, self.along[1:-1]
        ends = (along[0], along[-1])

        def beats(row: str, over: str) -> Statement:
            return measured.most(measured.gains(row, over, relative=False), above=0.0)

        def beaten_by_none(end: str) -> Statement:
            return AllOf([measured.at_most(measured.gains(row, end, relative=False), 0.0) for row in inside])

        anywhere = AnyOf([AllOf([beats(row, end) for end in ends]) for row in inside])
        at_end = AnyOf([beaten_by_none(end) for end in ends])
        shares: dict[Statement, float] = {anywhere: 0.8, at_end: 0.1}
        refuted = Outcome(Kind.FAILS, [at_end], "in most seeds no row inside beats an end")
        if isinstance(expected, str):
            outcomes = [
                Outcome(Kind.HOLDS, [anywhere], "a row inside beats both ends in most seeds"),
                refuted,
            ]
            shares[at_end] = 0.2
            return Expectation(outcomes, [settled(outcomes, shares)])
        # A named row that beats every row not named beats both ends: it uses that row's part of the level.
        rest = [row for row in along if row not in expected]
        named = [AllOf([beats(row, other) for other in rest]) for row in expected]
        as_expected = AnyOf(named)
        shares[as_expected] = 0.8 * len(named) / len(inside)
        outcomes = [Outcome(Kind.HOLDS, [as_expected], "best where expected in most seeds")]
        others = [row for row in inside if row not in expected]
        if others:
            other = AnyOf([AllOf([beats(row, each) for each in [*ends, *expected]]) for row in others])
            shares[other] = 0.1
            part = "an optimum inside seen, elsewhere"
            outcomes.append(
                Outcome(Kind.PARTLY, [other], "another row inside is better in most seeds", part=part)
            )
        part = "an optimum inside seen, place open"
        why = "not shown to be where expected"
        outcomes += [Outcome(Kind.PARTLY, [anywhere], why, part=part, final=False), refuted]
        return Expectation(outcomes, [settled(outcomes, shares)])

    def _effects(self, measured: Measured) -> list[Effect]:
        """The inside row that beats both ends in most seeds, over either: chosen from several, so description."""
        ends = (self.along[0], self.along[-1])
        effects = {
            row: [measured.effect(row, end, relative=measured.positive([row, end])) for end in ends]
            for row in self.along[1:-1]
        }
        best = max(effects, key=lambda row: min(effect.better for effect in effects[row]))
        return effects[best]
