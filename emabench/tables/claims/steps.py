"""`type: steps`: a row reaches a value of the metric in so many per cent fewer or more steps than another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Self

from pydantic import model_validator

from emabench.tables.band import within
from emabench.tables.claim import Pair, Rows, Unfit, Values
from emabench.tables.parts import OneAmount, Range, Scale, check_units
from emabench.tables.verdict import Effect, PreparedClaim


class StepsToTarget(Pair):
    """`row` reaches a value of the metric in so many per cent fewer or more steps than `over`."""

    type: Literal["steps"]
    target: float | dict[Scale, float] | None = None
    target_row: str | None = None  # instead: the mean final value of this row
    article: Range | None = None
    literature: Range | None = None
    tolerance: OneAmount

    def rows(self) -> list[str]:
        return [self.row, self.over, *([self.target_row] if self.target_row else [])]

    @model_validator(mode="after")
    def _relative_and_one_target(self) -> Self:
        check_units(self.tolerance, self.article, self.literature)
        if not self.tolerance.relative:
            raise ValueError(
                "steps are compared by their ratio; write article, literature and tolerance in per cent"
            )
        if (self.target is None) == (self.target_row is None):
            raise ValueError("takes one of target and target_row")
        return self

    def prepare(self, values: Values, rows: Rows) -> PreparedClaim:
        target = values.target
        if target is None:
            raise Unfit("there is no target at this scale")
        pair = (self.row, self.over)
        seeds = sorted(set(values.tracks.get(self.row, {})) & set(values.tracks.get(self.over, {})))
        if not seeds:
            raise Unfit("the runs were not measured along the way; set evaluate.every")
        x, missed = [], dict.fromkeys(pair, 0)
        for seed in seeds:
            reached = [_first(values.tracks[row][seed], target, values.higher) for row in pair]
            if reached == [None, None]:
                raise Unfit(
                    f"seed {seed} reaches the target of {target:.4g} in neither row: train longer, or set it lower"
                )
            for row, step in zip(pair, reached, strict=True):
                missed[row] += step is None
                if step == values.tracks[row][seed][0][0]:
                    raise Unfit(
                        f"{rows[row].label} is past the target of {target:.4g} when first measured (seed {seed}): "
                        "when it got there is not known"
                    )
            # Never reached counts as reached at the last measurement, which is a bound.
            last = max(values.tracks[row][seed][-1][0] for row in pair)
            steps, base = (last if step is None else step for step in reached)
            x.append(math.log(steps / base))
        what = f"steps to {target:.4g}, {rows[self.row].label} over {rows[self.over].label}"
        if all(missed.values()):
            raise Unfit(
                "some seeds reach the target in the one row alone, some in the other: train longer, or set it lower"
            )
        if never := sum(missed.values()):
            what += f" ({never} of {len(seeds)} seeds never reached it)"
        effect = Effect(what, x, relative=True)
        prepared = within(x, effect, self.expectations(rows), self.tolerance, change=True)
        if not never:
            return prepared
        # The row is later than it seems, or the other is: only what is shown on that side is shown.
        sure = set(prepared.sides[0 if missed[self.row] else 1])
        outcomes = {
            who: [outcome for outcome in possible if all(statement in sure for statement in outcome.shown)]
            for who, possible in prepared.outcomes.items()
        }
        return replace(prepared, outcomes=outcomes)


def _first(track: Sequence[tuple[int, float]], target: float, higher: bool) -> int | None:
    """The first step at which the target is reached."""
    return next((step for step, value in track if (value >= target if higher else value <= target)), None)
