"""`type: diverged`: fewer or more of a row's runs diverge than of another's."""

from __future__ import annotations

from typing import Literal

from emabench.tables.claim import Pair, Rows, Values
from emabench.tables.statistics import Rarer
from emabench.tables.verdict import Effect, Kind, Outcome, PreparedClaim, Verdict


class Diverged(Pair):
    """Of `row`'s runs a smaller (or larger) share diverges than of `over`'s."""

    type: Literal["diverged"]
    article: Literal["fewer", "more"] | None = None
    literature: Literal["fewer", "more"] | None = None

    def prepare(self, values: Values, rows: Rows) -> PreparedClaim:
        """`values` are 1 for a run that diverged, 0 for one that finished."""
        row, over = (list(values.by_row[key].values()) for key in (self.row, self.over))
        fewer, more = Rarer(row, over), Rarer(over, row)
        x = values.changes(self.row, self.over, relative=False)
        what = f"{sum(row):.0f} of {len(row)} runs diverged, {sum(over):.0f} of {len(over)} of {rows[self.over].label}"
        outcomes = {}
        for who, expected in self.expectations(rows).items():
            right, wrong = (fewer, more) if expected == "fewer" else (more, fewer)
            outcomes[who] = [
                Outcome(Kind.REPRODUCED, [right], expected),
                Outcome(Kind.CONTRADICTED, [wrong], f"not {expected}"),
            ]
        effect = Effect(what, x, relative=False)
        if not sum(row) + sum(over):
            return PreparedClaim([effect], without=Verdict(Kind.UNDECIDED, "no run diverged"))
        return PreparedClaim([effect], [[fewer], [more]], outcomes)
