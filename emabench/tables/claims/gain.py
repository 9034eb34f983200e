"""`type: gain`: a row changes the metric of another by so much."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from emabench.tables.band import band_words, within
from emabench.tables.claim import Measured, Pair, Rows
from emabench.tables.parts import OneAmount, Range, check_units
from emabench.tables.verdict import PreparedClaim


class Gain(Pair):
    """`row` changes the metric of `over` by so much, within `tolerance`."""

    type: Literal["gain"]
    article: Range | None = None
    literature: Range | None = None
    tolerance: OneAmount

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        check_units(self.tolerance, self.article, self.literature)
        return self

    def only_at_paper_scale(self) -> bool:
        return not self.tolerance.relative

    def estimand(self, label: str, rows: Rows) -> str:
        bands = band_words(self.expectations(rows), self.tolerance, change=True)
        change = "relative change" if self.tolerance.relative else "change"
        return (
            f"in a typical (median) seed, the {change} of {self.called(label)} from {rows[self.over].label} to "
            f"{rows[self.row].label} is {bands}"
        )

    def prepare(self, measured: Measured) -> PreparedClaim:
        relative = self.tolerance.relative
        x = measured.changes(self.row, self.over, relative)
        expected = within(measured, x, self.expectations(measured.rows), self.tolerance, change=True)
        return PreparedClaim([measured.effect(self.row, self.over, relative, named=False)], expected)
