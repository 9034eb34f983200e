"""`type: value`: a row's own number is the one reported and published."""

from __future__ import annotations

from typing import Any, Literal

from emabench.tables.band import within
from emabench.tables.claim import Claim, Rows, Values
from emabench.tables.parts import Amount, OneAmount
from emabench.tables.verdict import Effect, PreparedClaim


class Value(Claim):
    """The row's own number: measured is what the row reports (article) and publishes (literature)."""

    type: Literal["value"]
    row: str
    tolerance: OneAmount

    def rows(self) -> list[str]:
        return [self.row]

    def expectations(self, rows: Rows) -> dict[str, Any]:
        row = rows[self.row]
        reported = [row.reported[self.metric]] if self.metric in row.reported else []
        published = [number.value for number in row.published if number.metric == self.metric]
        return {
            who: (Amount(min(numbers), relative=False), Amount(max(numbers), relative=False))
            for who, numbers in (("article", reported), ("literature", published))
            if numbers
        }

    def only_at_paper_scale(self) -> bool:
        return True

    def prepare(self, values: Values, rows: Rows) -> PreparedClaim:
        numbers = values.by_row[self.row]
        x = [numbers[seed] for seed in sorted(numbers)]
        expected, tolerance = self.expectations(rows), self.tolerance
        if tolerance.relative:
            largest = max((abs(end.value) for ends in expected.values() for end in ends), default=0.0)
            tolerance = Amount(tolerance.value * largest, relative=False)
        effect = Effect(rows[self.row].label, x, relative=False)
        return within(x, effect, expected, tolerance, change=False)
