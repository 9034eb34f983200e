"""`type: value`: a row's own number is the one reported and published."""

from __future__ import annotations

import math
from typing import Any, Literal

from emabench.tables.band import band_words, within
from emabench.tables.claim import Claim, Measured, Rows
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

    def estimand(self, label: str, rows: Rows) -> str:
        bands = band_words(self.expectations(rows), self._absolute(rows), change=False)
        return f"in a typical (median) seed, {self.called(label)} of {rows[self.row].label} is {bands}"

    def prepare(self, measured: Measured) -> PreparedClaim:
        worst = -math.inf if measured.higher else math.inf
        values = [measured.values[self.row][seed] for seed in measured.seeds]
        x = [worst if value is None else value for value in values]
        expected, rows = self.expectations(measured.rows), measured.rows
        effect = Effect(rows[self.row].label, x, relative=False, seeds=measured.seeds)
        return PreparedClaim([effect], within(measured, x, expected, self._absolute(rows), change=False))

    def _absolute(self, rows: Rows) -> Amount:
        """The tolerance in the metric's unit."""
        if not self.tolerance.relative:
            return self.tolerance
        ends = [abs(end.value) for band in self.expectations(rows).values() for end in band]
        return Amount(self.tolerance.value * max(ends, default=0.0), relative=False)
