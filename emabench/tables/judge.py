"""A table and its runs, judged: every row measured, every claim with a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean

from emabench.averaging.profiles import window_of_decay
from emabench.runs.result import DamagedResult
from emabench.tables import spec
from emabench.tables.claim import Claim, Unfit, Values
from emabench.tables.claims.diverged import Diverged
from emabench.tables.claims.steps import StepsToTarget
from emabench.tables.gather import Run, Runs
from emabench.tables.parts import TableRow, at_scale
from emabench.tables.statistics import ALPHA, Estimate, estimate, holm
from emabench.tables.verdict import Effect, Kind, PreparedClaim, Verdict


@dataclass(frozen=True)
class Cell:
    """One metric of one row: the numbers by seed, and how they differ from the row it is compared with."""

    values: Mapping[int, float]
    mean: Estimate | None
    change: Estimate | None  # paired by seed, in the metric's unit
    relative: (
        Estimate | None
    )  # the same as a relative change (of geometric means), where values are above zero


@dataclass(frozen=True)
class MeasuredRow:
    """One row as measured."""

    key: str
    spec: TableRow
    average: str
    against: str | None
    window: float | None  # steps
    cells: Mapping[str, Cell]
    planned: int  # seeds asked for
    finished: int
    diverged: int
    failed: int

    @property
    def missing(self) -> int:
        return self.planned - self.finished - self.diverged - self.failed


@dataclass(frozen=True)
class Ruling:
    """One claim with what was measured of it and the verdict on each that makes it: article, literature."""

    claim: Claim
    effects: Sequence[Effect]
    verdicts: Mapping[str, Verdict]


@dataclass(frozen=True)
class Judged:
    """A table at one scale with its runs."""

    table: spec.Table
    scale: str
    runs: Runs
    rows: Mapping[str, MeasuredRow]
    rulings: Sequence[Ruling]
    measured_with: Mapping[str, str]
    problems: Sequence[str]  # what a reader has to know of these runs
    claims_judged: int
    overrides: Sequence[str] = ()  # the user's, beyond what the table sets

    @cached_property
    def all_runs(self) -> list[Run]:
        """Every run with a result, once, in the order of arms and seeds."""
        return [run for by_seed in self.runs.values() for run in by_seed.values() if run]

    @property
    def seeds(self) -> int:
        """How many seeds have a result in every arm."""
        have = [{seed for seed, run in by_seed.items() if run} for by_seed in self.runs.values()]
        return len(set.intersection(*have)) if have else 0

    @property
    def of_paper_scale_alone(self) -> list[Ruling]:
        """Rulings of claims that this scale cannot speak of."""
        return [r for r in self.rulings if self.scale != "paper" and r.claim.only_at_paper_scale()]

    @property
    def references(self) -> Mapping[str, float]:
        """Floors and ceilings of the metrics on this data, as the runs measured them (of the first that has any)."""
        return next((run.result.references for run in self.all_runs if run.result.references), {})

    def tally(self, who: str) -> dict[Kind, int]:
        """How many verdicts of each kind on the article's or the literature's expectations, of what this scale can say."""
        judged = [ruling for ruling in self.rulings if ruling not in self.of_paper_scale_alone]
        kinds = [ruling.verdicts[who].kind for ruling in judged if who in ruling.verdicts]
        return {kind: kinds.count(kind) for kind in Kind if kind in kinds}

    def comparable(self, metric: str) -> str:
        """Why values of the metric cannot be set against reported and published ones; "" where they can."""
        if self.scale != "paper":
            return f"scale {self.scale}: other data, another network, fewer steps"
        if self.measured_with.get(metric) != self.table.measured_with.get(metric):
            mine = self.measured_with.get(metric, "nothing stated")
            theirs = self.table.measured_with.get(metric, "nothing stated")
            return f"measured with {mine}; the published values with {theirs}"
        return ""


def judge(table: spec.Table, scale: str, runs: Runs, overrides: Sequence[str] = ()) -> Judged:
    """Measure every row of the table on these runs and judge every claim.

    `overrides` are what the user set beyond the table: the page says them in the command to run it again.
    """
    spec.check_scale(scale)
    measured_with, mixed = _measured_with(table, runs)
    rows = {key: _row(table, key, scale, runs, set(mixed)) for key in table.rows}
    problems = [*mixed.values(), *_problems(table, scale, runs)]
    judged = Judged(table, scale, runs, rows, (), measured_with, problems, 0, overrides)
    prepared = [(claim, _prepared(judged, claim, mixed)) for claim in table.claims]
    sides = [side for _, each in prepared for side in each.sides]
    shown, level = holm(sides), ALPHA / max(1, len(sides))
    rulings = [
        Ruling(claim, each.effects, each.verdicts(claim.expectations(table.rows), shown, level))
        for claim, each in prepared
    ]
    return replace(judged, rulings=rulings, claims_judged=sum(bool(each.sides) for _, each in prepared))


def _measured_with(table: spec.Table, runs: Runs) -> tuple[dict[str, str], dict[str, str]]:
    """By metric what it was measured with, and for metrics where runs differ in that, the problem in words."""
    found: dict[str, dict[str, int]] = {metric: {} for metric in table.metrics}
    for run in (run for by_seed in runs.values() for run in by_seed.values() if run and run.finished):
        for metric, counts in found.items():
            if metric in run.result.metrics:
                text = run.result.measured_with.get(metric, "")
                counts[text] = counts.get(text, 0) + 1
    mixed = {
        metric: f"{table.metrics[metric].label}: the runs differ in what it was measured with, "
        + "; ".join(f"{count} with {text or 'nothing stated'}" for text, count in sorted(counts.items()))
        + ". Such values are not set beside each other"
        for metric, counts in found.items()
        if len(counts) > 1
    }
    same = {m: next(iter(counts)) for m, counts in found.items() if len(counts) == 1 and next(iter(counts))}
    return same, mixed


def _problems(table: spec.Table, scale: str, runs: Runs) -> list[str]:
    found = []
    for arm, by_seed in runs.items():
        for status, word in (("diverged", "diverged"), ("failed", "failed")):
            seeds = [seed for seed, run in by_seed.items() if run and run.result.status == status]
            if seeds:
                listed = ", ".join(map(str, seeds))
                found.append(
                    f"arm {arm}: {len(seeds)} of {len(by_seed)} runs {word} (seed {listed}); they are no numbers"
                )
        for run in by_seed.values():
            if run and (run.result.task, run.result.scale) != (table.task, scale):
                raise ValueError(f"run {run.result.run_id} is of {run.result.task}, {run.result.scale}")
            if run and run.finished:
                for metric, asked in table.metrics.items():
                    there = run.result.metrics.get(metric)
                    if there and there != asked.better:
                        raise DamagedResult(
                            f"{metric} is better {there} in run {run.result.run_id}, {asked.better} in the table"
                        )
    return found


def _row(table: spec.Table, key: str, scale: str, runs: Runs, mixed: set[str]) -> MeasuredRow:
    by_seed = runs.get(table.rows[key].arm, {})
    average, against = table.average(key, scale), table.against(key)
    decay = at_scale(table.rows[key].decay, scale)
    windows = [
        run.window(average) if decay is None else window_of_decay(decay) for run in by_seed.values() if run
    ]
    status = [run.result.status for run in by_seed.values() if run]
    cells = {}
    for metric in table.metrics:
        mine = {} if metric in mixed else _values(table, key, scale, runs, metric)
        base = _values(table, against, scale, runs, metric) if against and mine else {}
        seeds = sorted(set(mine) & set(base))
        positive = all(mine[seed] > 0 and base[seed] > 0 for seed in seeds)
        logs = estimate([math.log(mine[seed] / base[seed]) for seed in seeds]) if positive else None
        cells[metric] = Cell(
            mine,
            estimate(list(mine.values())),
            estimate([mine[seed] - base[seed] for seed in seeds]),
            logs.map(math.expm1) if logs else None,
        )
    return MeasuredRow(
        key,
        table.rows[key],
        average,
        against,
        next((window for window in windows if window is not None), None),
        cells,
        len(by_seed),
        status.count("finished"),
        status.count("diverged"),
        status.count("failed"),
    )


def _values(table: spec.Table, key: str, scale: str, runs: Runs, metric: str) -> dict[int, float]:
    """By seed: a row's numbers."""
    average = table.average(key, scale)
    found = {}
    for seed, run in sorted(runs.get(table.rows[key].arm, {}).items()):
        value = run.value(average, metric) if run else None
        if value is not None:
            found[seed] = value
    return found


def _prepared(judged: Judged, claim: Claim, mixed: Mapping[str, str]) -> PreparedClaim:
    if claim.metric in mixed:
        return PreparedClaim(without=Verdict(Kind.NOT_COMPARABLE, "the runs were not measured with the same"))
    if not judged.all_runs:
        return PreparedClaim(without=Verdict(Kind.NOT_RUN))
    if claim.only_at_paper_scale() and (why := judged.comparable(claim.metric)):
        return PreparedClaim(without=Verdict(Kind.NOT_COMPARABLE, why))
    values = _claim_values(judged, claim)
    if not values.seeds(claim.rows()):
        return PreparedClaim(without=Verdict(Kind.NOT_RUN, "no seed has all the rows it needs"))
    try:
        return claim.prepare(values, judged.table.rows)
    except Unfit as error:
        return PreparedClaim(without=Verdict(Kind.NOT_COMPARABLE, str(error)))


def _claim_values(judged: Judged, claim: Claim) -> Values:
    if isinstance(claim, Diverged):
        return Values(_diverged(judged, claim), higher=False)
    numbers = {row: judged.rows[row].cells[claim.metric].values for row in claim.rows()}
    higher = judged.table.metrics[claim.metric].better == "higher"
    if isinstance(claim, StepsToTarget):
        return Values(numbers, higher, _tracks(judged, claim), _target(judged, claim))
    return Values(numbers, higher)


def _diverged(judged: Judged, claim: Diverged) -> dict[str, dict[int, float]]:
    """By row and seed: 1 for a run that diverged, 0 for one that finished."""
    return {
        key: {
            seed: float(run.result.status == "diverged")
            for seed, run in judged.runs.get(judged.rows[key].spec.arm, {}).items()
            if run and run.result.status in ("finished", "diverged")
        }
        for key in claim.rows()
    }


def _tracks(judged: Judged, claim: StepsToTarget) -> dict[str, dict[int, list[tuple[int, float]]]]:
    """What was measured along the runs of the claim's two rows, where that is more than their ends."""
    found: dict[str, dict[int, list[tuple[int, float]]]] = {}
    for key in (claim.row, claim.over):
        row = judged.rows[key]
        runs = judged.runs.get(row.spec.arm, {})
        tracks = {
            seed: run.measured(row.average, claim.metric)
            for seed, run in runs.items()
            if run and run.finished
        }
        found[key] = {seed: track for seed, track in tracks.items() if len(track) > 1}
    return found


def _target(judged: Judged, claim: StepsToTarget) -> float | None:
    if claim.target_row:
        values = judged.rows[claim.target_row].cells[claim.metric].values
        return fmean(values.values()) if values else None
    return at_scale(claim.target, judged.scale)
