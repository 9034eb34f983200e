"""`type: difference`: a row is better or worse than another, or equal to it within a margin."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from emabench.tables.claim import Pair, Rows, Values, to_log
from emabench.tables.parts import Amount, OneAmount
from emabench.tables.statistics import Above, below
from emabench.tables.verdict import Effect, Kind, Outcome, PreparedClaim


class Difference(Pair):
    """`row` is better or worse than `over`, or equal to it within `margin`."""

    type: Literal["difference"]
    margin: OneAmount = Amount(0.0, relative=False)
    article: Literal["better", "worse", "equal"] | None = None
    literature: Literal["better", "worse", "equal"] | None = None

    @model_validator(mode="after")
    def _margin(self) -> Self:
        if self.margin.value < 0 or ("equal" in (self.article, self.literature) and not self.margin.value):
            raise ValueError("equality is judged within a margin above zero; set margin")
        return self

    def prepare(self, values: Values, rows: Rows) -> PreparedClaim:
        x = values.gains(self.row, self.over, self.margin.relative)
        margin = to_log(self.margin)
        up = [Above(x, threshold) for threshold in sorted({-margin, 0.0, margin})]
        down = [below(x, threshold) for threshold in sorted({-margin, 0.0, margin}, reverse=True)]
        above, under = {s.threshold: s for s in up}, {-s.threshold: s for s in down}
        size = f"{self.margin}".lstrip("+") if margin else ""
        outcomes: dict[str, list[Outcome]] = {}
        for who, expected in self.expectations(rows).items():
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
                Outcome(
                    Kind.CONTRADICTED, [wrong[edge]], f"not {expected}" + (f" by {size}" if size else "")
                ),
            ]
            if margin:
                outcomes[who].insert(
                    0, Outcome(Kind.DIRECTION, [right[0.0], wrong[edge]], f"{expected}, by less than {size}")
                )
        effect = Effect("", values.changes(self.row, self.over, self.margin.relative), self.margin.relative)
        return PreparedClaim([effect], [up, down], outcomes)
