"""`type: optimum`: along the rows the metric is best inside, or at the rows that are named."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from emabench.tables.claim import Claim, Rows, Values
from emabench.tables.statistics import Above, AllOf, AnyOf, Side, Statement
from emabench.tables.verdict import Kind, Outcome, PreparedClaim


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

    def prepare(self, values: Values, rows: Rows) -> PreparedClaim:
        along, inside = self.along, self.along[1:-1]
        ends, relative = (along[0], along[-1]), values.positive(along)

        def better(row: str, over: str) -> Statement:
            return Above(values.gains(row, over, relative))

        peak = {row: AllOf([better(row, end) for end in ends]) for row in inside}
        anywhere = AnyOf(list(peak.values()))
        at_end = AnyOf([AllOf([better(end, row) for row in inside]) for end in ends])
        sides: list[Side] = [[at_end]]
        outcomes: dict[str, list[Outcome]] = {}
        by_expected: dict[str, list[Outcome]] = {}
        for who, expected in self.expectations(rows).items():
            if str(expected) in by_expected:  # asked once, though two may expect it
                outcomes[who] = by_expected[str(expected)]
                continue
            contradicted = Outcome(Kind.CONTRADICTED, [at_end], "best at an end")
            if expected == "interior":
                sides.append([anywhere])
                outcomes[who] = by_expected[str(expected)] = [
                    Outcome(Kind.REPRODUCED, [anywhere], "best inside"),
                    contradicted,
                ]
                continue
            others = [row for row in along if row not in expected]
            as_expected = AnyOf([AllOf([better(row, other) for other in others]) for row in expected])
            elsewhere = [row for row in inside if row not in expected]
            beaten = (
                AnyOf([AllOf([better(other, row) for row in expected]) for other in elsewhere])
                if elsewhere
                else None
            )
            sides.append([anywhere, as_expected])
            outcomes[who] = by_expected[str(expected)] = [
                Outcome(Kind.REPRODUCED, [anywhere, as_expected], "best inside, where expected"),
                Outcome(Kind.DIRECTION, [anywhere], "best inside; not shown to be where expected"),
                contradicted,
            ]
            if beaten:
                sides.append([beaten])
                outcomes[who].insert(
                    0, Outcome(Kind.DIRECTION, [anywhere, beaten], "best inside, but elsewhere")
                )
        best = max(along, key=lambda row: values.mean(row) * (1 if values.higher else -1))
        effects = [values.effect(best, end, relative, rows) for end in ends if end != best]
        return PreparedClaim(effects, sides, outcomes)
