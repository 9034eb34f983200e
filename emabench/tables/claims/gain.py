"""`type: gain`: a row changes the metric of another by so much."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from emabench.tables.band import within
from emabench.tables.claim import Pair, Rows, Values
from emabench.tables.parts import OneAmount, Range, check_units
from emabench.tables.verdict import Effect, PreparedClaim


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

    def prepare(self, values: Values, rows: Rows) -> PreparedClaim:
        relative = self.tolerance.relative
        x = values.changes(self.row, self.over, relative)
        return within(x, Effect("", x, relative), self.expectations(rows), self.tolerance, change=True)
