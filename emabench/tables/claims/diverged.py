"""`type: diverged`: fewer or more of a row's runs diverge than of another's."""

from __future__ import annotations

from typing import Literal

from emabench.tables.boundary import at_most
from emabench.tables.claim import Measured, Pair, Rows
from emabench.tables.statistics import MostlyThis
from emabench.tables.verdict import Effect, Expectation, Kind, Outcome, PreparedClaim, Verdict, settled


class Diverged(Pair):
    """Of `row`'s runs a smaller (or larger) share diverges than of `over`'s."""

    type: Literal["diverged"]
    article: Literal["fewer", "more"] | None = None
    literature: Literal["fewer", "more"] | None = None

    def estimand(self, label: str, rows: Rows) -> str:
        return (
            f"of the seeds in which just one of {rows[self.row].label} and {rows[self.over].label} diverges, in more "
            "than half it is the one expected to diverge more"
        )

    def prepare(self, measured: Measured) -> PreparedClaim:
        row, over = (
            [measured.diverged[key][seed] for seed in measured.seeds] for key in (self.row, self.over)
        )
        fewer = MostlyThis(over, row, measured.looks)
        more = MostlyThis(row, over, measured.looks)
        n, label = len(measured.seeds), measured.rows[self.over].label
        what = f"{sum(row)} of {n} runs diverged, {sum(over)} of {n} of {label}"
        effect = Effect(
            what, [float(a) - b for a, b in zip(row, over, strict=True)], relative=False, seeds=measured.seeds
        )
        ready = {}
        for expected, right, wrong in (("fewer", fewer, more), ("more", more, fewer)):
            outcomes = [
                Outcome(Kind.HOLDS, [right], f"{expected} diverge"),
                Outcome(Kind.OPPOSITE, [wrong], f"{'more' if expected == 'fewer' else 'fewer'} diverge"),
            ]
            ready[expected] = Expectation(outcomes, [settled(outcomes, {right: 0.5, wrong: 0.5})])
        if not sum(row) + sum(over):
            rate = f"up to {100 * at_most(0, n):.0f} % still may (95 %)" if n else "no seed was run"
            why = f"no run of {n} seeds diverged; {rate}"
            return PreparedClaim([effect], without=Verdict(Kind.UNDECIDED, why))
        expectations = self.expectations(measured.rows)
        return PreparedClaim([effect], {who: ready[each] for who, each in expectations.items()})
