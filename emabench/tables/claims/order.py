"""`type: order`: the metric gets better (or worse) with every step along the rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from emabench.tables.claim import Claim, Rows, Values, to_log
from emabench.tables.parts import Amount, OneAmount
from emabench.tables.statistics import Above, AllOf, AnyOf, Side, below
from emabench.tables.verdict import Kind, Outcome, PreparedClaim


class Order(Claim):
    """The metric gets better (or worse) with every step along the rows.

    A step back within `margin` is none, and less than `margin` from the first row to the last is no gain.
    """

    type: Literal["order"]
    along: Annotated[list[str], Field(min_length=2)]
    margin: OneAmount = Amount(0.0, relative=False)
    article: Literal["better", "worse"] | None = None
    literature: Literal["better", "worse"] | None = None

    def rows(self) -> list[str]:
        return self.along

    def prepare(self, values: Values, rows: Rows) -> PreparedClaim:
        along, relative = self.along, self.margin.relative
        steps = [values.gains(after, before, relative) for before, after in pairwise(along)]
        # The trend, per seed: the contrast of rows with equally spaced weights.
        scale = math.log if relative else float
        sign = 1 if values.higher else -1
        values.check_positive(relative, along)
        middle = (len(along) - 1) / 2
        trend = [
            sum((i - middle) * sign * scale(values.by_row[row][seed]) for i, row in enumerate(along))
            for seed in values.seeds(along)
        ]
        margin = to_log(self.margin)
        sides: list[Side] = []
        outcomes: dict[str, list[Outcome]] = {}
        by_expected: dict[str, list[Outcome]] = {}
        for who, expected in self.expectations(rows).items():
            if expected not in by_expected:
                turn = 1 if expected == "better" else -1
                trending = Above([turn * each for each in trend])
                every = AllOf([Above([turn * each for each in step]) for step in steps])
                back = AnyOf([Above([-turn * each for each in step], margin) for step in steps])
                sides += [[trending, every], [back]]
                by_expected[expected] = [
                    Outcome(Kind.CONTRADICTED, [back], self._where_back(steps, turn, rows)),
                    Outcome(Kind.REPRODUCED, [trending, every], f"{expected} with every step"),
                    Outcome(
                        Kind.DIRECTION,
                        [trending],
                        f"{expected} along the rows as a whole, not shown for every step",
                    ),
                ]
                if margin:
                    whole = [turn * each for each in values.gains(along[-1], along[0], relative)]
                    flat = below(whole, margin)
                    size = f"{self.margin}".lstrip("+")
                    sides.append([flat])
                    by_expected[expected].insert(
                        1,
                        Outcome(Kind.DIRECTION, [trending, flat], f"{expected}, by less than {size} in all"),
                    )
                    by_expected[expected].append(
                        Outcome(Kind.CONTRADICTED, [flat], f"not {expected} by {size} in all")
                    )
            outcomes[who] = by_expected[expected]
        effects = [values.effect(after, before, relative, rows) for before, after in pairwise(along)]
        return PreparedClaim(effects, sides, outcomes)

    def _where_back(self, steps: Sequence[Sequence[float]], turn: int, rows: Rows) -> str:
        """Which step goes back furthest, in words."""
        worst = min(range(len(steps)), key=lambda i: turn * sum(steps[i]) / len(steps[i]))
        before, after = (rows[self.along[i]].label for i in (worst, worst + 1))
        return f"it goes back from {before} to {after}"
