"""`type: steps`: a row reaches a value of the metric in so many per cent fewer or more steps than another."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import model_validator

from emabench.tables.band import band_words, within
from emabench.tables.claim import Measured, Pair, Rows, Track, Unfit
from emabench.tables.parts import OneAmount, Range, Scale, at_scale, check_units
from emabench.tables.verdict import Effect, PreparedClaim


class StepsToTarget(Pair):
    """`row` reaches a value of the metric in so many per cent fewer or more steps than `over`.

    The target is fixed beforehand: one that is taken from the runs themselves would favour a row.
    """

    type: Literal["steps"]
    target: float | dict[Scale, float]
    article: Range | None = None
    literature: Range | None = None
    tolerance: OneAmount

    @model_validator(mode="after")
    def _relative(self) -> Self:
        check_units(self.tolerance, self.article, self.literature)
        if not self.tolerance.relative:
            raise ValueError(
                "steps are compared by their ratio; write article, literature and tolerance in per cent"
            )
        return self

    def estimand(self, label: str, rows: Rows) -> str:
        bands = band_words(self.expectations(rows), self.tolerance, change=True)
        return (
            f"in a typical (median) seed, the relative change in steps to the target of {self.called(label)} from "
            f"{rows[self.over].label} to {rows[self.row].label} is {bands}; a row that never gets there is last, and "
            "steps are known to the measurements along the way"
        )

    def prepare(self, measured: Measured) -> PreparedClaim:
        target = at_scale(self.target, measured.scale)
        if target is None:
            raise Unfit("there is no target at this scale")
        x, ends, never = [], [], 0
        for seed in measured.seeds:
            row, over = (self._reached(measured, key, seed, target) for key in (self.row, self.over))
            never += row is None or over is None
            if row is None and over is None:
                x.append(math.nan)
                ends.append((math.nan, math.nan))
            elif row is None or over is None:
                x.append(math.inf if row is None else -math.inf)
                ends.append((x[-1], x[-1]))
            else:  # between the measurement before and this one: the ratio is known no better
                x.append(math.log(row[1] / over[1]))
                ends.append((math.log(row[0] / over[1]), math.log(row[1] / over[0])))
        rows = measured.rows
        what = f"steps to {target:.4g}, {rows[self.row].label} over {rows[self.over].label}"
        if never:
            what += f" (in {never} of {len(x)} seeds one or both never reached it)"
        effect = Effect(what, x, relative=True, higher=False, seeds=measured.seeds)
        lower, upper = zip(*ends, strict=True)
        expected = within(
            measured, lower, self.expectations(rows), self.tolerance, change=True, at_most=upper
        )
        return PreparedClaim([effect], expected)

    def _reached(self, measured: Measured, row: str, seed: int, target: float) -> tuple[int, int] | None:
        """The measurements between which the target is reached; None for never, or for a run that diverged."""
        if measured.diverged[row][seed]:
            return None
        track: Track = measured.tracks.get(row, {}).get(seed, ())
        if len(track) < 2:
            raise Unfit("the runs were not measured along the way; set evaluate.every")
        passed = (i for i, (_, v) in enumerate(track) if (v >= target if measured.higher else v <= target))
        i = next(passed, None)
        if i is None:
            return None
        if i == 0:
            raise Unfit(
                f"{measured.rows[row].label} is past the target of {target:.4g} when first measured (seed {seed}): "
                "when it got there is not known"
            )
        return track[i - 1][0], track[i][0]
