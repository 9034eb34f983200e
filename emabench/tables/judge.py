"""A table and its runs, judged: every row measured, every claim with a verdict."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

from emabench.config import PRIVATE
from emabench.tables import measure, provenance, spec
from emabench.tables.claim import Claim, Measured, Unfit
from emabench.tables.claims.diverged import Diverged
from emabench.tables.claims.gain import Gain
from emabench.tables.claims.steps import StepsToTarget
from emabench.tables.gather import Run, Runs
from emabench.tables.measure import MeasuredRow
from emabench.tables.parts import Scale
from emabench.tables.provenance import Since
from emabench.tables.statistics import ALPHA, Family, Statement, holm
from emabench.tables.verdict import DECIDED, Effect, Kind, PreparedClaim, Verdict


@dataclass(frozen=True)
class Ruling:
    """One claim with what was measured of it and the verdict on each that makes it: article, literature.

    since: the commit since which it stands. after_data: it was written after some of its runs were made.
    """

    claim: Claim
    estimand: str
    effects: Sequence[Effect]
    verdicts: Mapping[str, Verdict]
    seeds: Sequence[int]  # that it was judged by
    since: Since | None = None
    after_data: bool = False


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
    exploratory: Sequence[str] = ()  # why its verdicts are not those of the plan; none where they are
    families: Sequence[Family] = ()  # of all its claims, for the error rate of several tables
    prepared: Sequence[PreparedClaim] = ()
    pool: Collection[str] = ()  # in what runs may differ and still be judged together

    @cached_property
    def all_runs(self) -> list[Run]:
        """Every run with a result, once, in the order of arms and seeds."""
        return [run for by_seed in self.runs.values() for run in by_seed.values() if run]

    @property
    def seeds(self) -> int:
        """How many seeds have a result in every arm."""
        have = [{seed for seed, run in by_seed.items() if run} for by_seed in self.runs.values()]
        return len(set.intersection(*have)) if have else 0

    def in_order(self, arms: Collection[str]) -> list[int]:
        """The seeds that verdicts on these arms count: in their order, up to the first that one arm still lacks."""
        several = [self.runs.get(arm, {}) for arm in arms]
        seeds = []
        for seed in sorted({seed for by_seed in several for seed in by_seed}):
            its_runs = [by_seed.get(seed) for by_seed in several]
            if not all(run and run.result.status != "failed" for run in its_runs):
                break
            seeds.append(seed)
        return seeds if self.exploratory else seeds[: self.table.plan(self.scale).looks[-1]]

    def looks(self, seeds: int) -> tuple[int, ...]:
        """The numbers of seeds at which they are counted; outside the plan that is now."""
        return (max(1, seeds),) if self.exploratory else self.table.plan(self.scale).looks

    @property
    def stand_in(self) -> bool:
        """Is what was trained a stand-in for what the article is about?"""
        return self.table.stand_in(self.scale)

    @property
    def of_paper_scale_alone(self) -> list[Ruling]:
        """Rulings of claims that this scale cannot speak of."""
        return [r for r in self.rulings if self.stand_in and r.claim.only_at_paper_scale()]

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
        if self.stand_in:
            return f"scale {self.scale}: other data, another network, fewer steps"
        if self.measured_with.get(metric) != self.table.measured_with.get(metric):
            measured = self.measured_with.get(metric, "nothing stated")
            stated = self.table.measured_with.get(metric, "nothing stated")
            return f"measured with {measured}; the published values with {stated}"
        return ""


def judge(
    table: spec.Table,
    scale: str,
    runs: Runs,
    overrides: Sequence[str] = (),
    *,
    pool: Collection[str] = (),
    since: Sequence[Since | None] = (),
) -> Judged:
    """Measure every row of the table on these runs and judge every claim.

    Args:
        overrides: what the user set beyond the table: the page has them in the command to run it again.
        pool: in what runs may differ and still be judged together: code, precision, device.
        since: for each claim, since when it stands (`provenance.claims_since`).
    """
    spec.check_scale(scale)
    measured_with, mixed = measure.measured_with(table, runs)
    problems = [*mixed.values(), *measure.problems_of(table, scale, runs)]
    unlike = {
        arm: words for arm, by_seed in runs.items() if (words := provenance.unlike(_finished(by_seed), pool))
    }
    problems += [f"arm {arm}: {words}" for arm, words in unlike.items()]
    rows = {key: measure.measured_row(table, key, scale, runs, set(mixed), set(unlike)) for key in table.rows}
    exploratory = _exploratory(table, scale, runs, overrides)
    judged = Judged(
        table,
        scale,
        runs,
        rows,
        (),
        measured_with,
        problems,
        0,
        overrides,
        exploratory=exploratory,
        pool=pool,
    )
    by_claim = [judged.in_order(_arms(table, claim)) for claim in table.claims]
    prepared = [
        _prepared(judged, claim, seeds, mixed, pool)
        for claim, seeds in zip(table.claims, by_claim, strict=True)
    ]
    families = _families(judged, prepared)
    shown = holm(families)
    rulings = []
    for i, (claim, each) in enumerate(zip(table.claims, prepared, strict=True)):
        stands = since[i] if i < len(since) else None
        its_runs = [run for arm in _arms(table, claim) for run in runs.get(arm, {}).values() if run]
        rulings.append(
            Ruling(
                claim,
                claim.estimand(table.metrics[claim.metric].label, table.rows),
                each.effects,
                _verdicts(claim, each, table, shown, len(families)),
                by_claim[i],
                stands,
                bool(table.file) and provenance.chosen_after(stands, its_runs, table.file),  # type: ignore[arg-type]
            )
        )
    count = sum(bool(each.expectations) for each in prepared)
    return replace(judged, rulings=rulings, claims_judged=count, families=families, prepared=prepared)


def _families(judged: Judged, prepared: Sequence[PreparedClaim]) -> list[Family]:
    """Those of all claims that this scale can speak of; of claims that cannot be tested, empty ones that keep their level."""
    families: list[Family] = []
    for claim, each in zip(judged.table.claims, prepared, strict=True):
        if judged.stand_in and claim.only_at_paper_scale():
            continue
        distinct = {id(e): e for e in each.expectations.values()}.values()
        own = [family for expectation in distinct for family in expectation.families]
        families += own or [Family() for _ in range(claim.family_count(judged.table.rows))]
    return families


def _verdicts(
    claim: Claim, prepared: PreparedClaim, table: spec.Table, shown: Collection[Statement], count: int
) -> dict[str, Verdict]:
    expecting = claim.expectations(table.rows)
    if prepared.without:
        verdicts = dict.fromkeys(expecting, prepared.without)
    else:
        verdicts = {who: e.verdict(shown, ALPHA, count) for who, e in prepared.expectations.items()}
    if claim.cannot_hold and "article" in verdicts:
        verdicts["article"] = Verdict(Kind.CANNOT_HOLD, claim.cannot_hold)
    return verdicts


def survivors(several: Sequence[Judged]) -> list[Judged]:
    """The same tables, with the verdicts marked that hold beside all claims of all these tables (Holm over all).

    In the same words: a size that is shown in its own table may be open here. What is exploratory, or was claimed after
    its data, is never marked: its chance of being false is not known.
    """
    shown = holm([family for judged in several for family in judged.families])
    marked = []
    for judged in several:
        rulings = []
        for ruling, prepared in zip(judged.rulings, judged.prepared, strict=True):
            planned = not (judged.exploratory or ruling.after_data)
            verdicts = {
                who: replace(verdict, overview=prepared.expectations[who].verdict(shown, ALPHA, 1) == verdict)
                if planned and who in prepared.expectations and verdict.kind in DECIDED
                else verdict
                for who, verdict in ruling.verdicts.items()
            }
            rulings.append(replace(ruling, verdicts=verdicts))
        marked.append(replace(judged, rulings=rulings))
    return marked


def _finished(by_seed: Mapping[int, Run | None]) -> list[Run]:
    return [run for run in by_seed.values() if run and run.result.status != "failed"]


def _arms(table: spec.Table, claim: Claim) -> list[str]:
    return list(dict.fromkeys(table.rows[row].arm for row in claim.rows()))


def _exploratory(table: spec.Table, scale: str, runs: Runs, overrides: Sequence[str]) -> list[str]:
    """Why the verdicts on these runs are not those of the plan."""
    reasons = []
    plan = table.plan(scale)
    if scale == "smoke":
        reasons.append("scale smoke is for trying out")
    seeds = sorted({seed for by_seed in runs.values() for seed, run in by_seed.items() if run})
    if seeds and seeds != list(range(plan.first, plan.first + len(seeds))):
        reasons.append(
            f"seeds {_span(seeds)} are not the planned ones, {_span(range(plan.first, plan.first + plan.looks[-1]))}"
        )
    for word in overrides:
        key = word.lstrip("+~").partition("=")[0].partition(".")[0]
        if key not in PRIVATE | {"scale", "pool"}:
            reasons.append(f"{word} is not in the plan")
    return reasons


def _span(seeds: Sequence[int]) -> str:
    run = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]} to {seeds[-1]}" if run and len(seeds) > 1 else ", ".join(map(str, seeds))


def _prepared(
    judged: Judged, claim: Claim, seeds: Sequence[int], mixed: Mapping[str, str], pool: Collection[str]
) -> PreparedClaim:
    table = judged.table
    if claim.metric in mixed:
        return PreparedClaim(without=Verdict(Kind.NOT_COMPARABLE, "the runs were not measured with the same"))
    if not judged.all_runs:
        return PreparedClaim(without=Verdict(Kind.NOT_RUN))
    if claim.only_at_paper_scale() and (why := judged.comparable(claim.metric)):
        return PreparedClaim(without=Verdict(Kind.NOT_COMPARABLE, why))
    if not seeds:
        return PreparedClaim(without=Verdict(Kind.NOT_RUN, "no seed has all the runs it needs"))
    its_runs = [judged.runs[arm][seed] for arm in _arms(table, claim) for seed in seeds]
    if why := provenance.unlike([run for run in its_runs if run], pool):
        return PreparedClaim(without=Verdict(Kind.NOT_COMPARABLE, why))
    if all(not (run and run.finished) for run in its_runs) and not isinstance(claim, Diverged):
        return PreparedClaim(without=Verdict(Kind.NOT_RUN, "every run diverged"))
    try:
        _check_units(judged, claim)
        return claim.prepare(_measured(judged, claim, seeds))
    except Unfit as error:
        return PreparedClaim(without=Verdict(Kind.NOT_COMPARABLE, str(error)))


def _check_units(judged: Judged, claim: Claim) -> None:
    """The size of a change in one unit says nothing of its size in another."""
    unit = judged.table.metrics[claim.metric].unit_at
    if isinstance(claim, Gain) and unit(judged.scale) != unit("paper"):
        raise Unfit(
            f"measured {unit(judged.scale)}, published {unit('paper')}: the same change is another share of the one "
            "and of the other"
        )


def _measured(judged: Judged, claim: Claim, seeds: Sequence[int]) -> Measured:
    table = judged.table
    about = table.metrics[claim.metric]
    looks = judged.looks(len(seeds))
    values: dict[str, dict[int, float | None]] = {}
    diverged: dict[str, dict[int, bool]] = {}
    tracks: dict[str, dict[int, list[tuple[int, float]]]] = {}
    for key in claim.rows():
        row = judged.rows[key]
        runs = {seed: run for seed in seeds if (run := judged.runs[row.spec.arm][seed])}
        finished = [run for run in runs.values() if run.finished]
        if any(run.result.row(row.average) is None for run in finished):
            raise Unfit(f"some runs of {row.spec.label} do not carry {row.average}")
        if any(claim.metric not in run.result.metrics for run in finished):
            raise Unfit(f"{about.label} is not measured by these runs")
        numbers = {seed: run.value(row.average, claim.metric) for seed, run in runs.items()}
        if claim.of == "size":
            numbers = {seed: None if x is None else abs(x) for seed, x in numbers.items()}
        values[key] = numbers
        diverged[key] = {seed: not run.finished for seed, run in runs.items()}
        if isinstance(claim, StepsToTarget):
            for seed, run in runs.items():
                if run.finished and run.history_problem:
                    raise Unfit(
                        f"{row.spec.label}, seed {seed}: {run.history_problem}; rerun=true repeats it"
                    )
            tracks[key] = {seed: run.measured(row.average, claim.metric) for seed, run in runs.items()}
    higher = about.better == "higher"
    return Measured(
        table.rows,
        cast(Scale, judged.scale),
        about.label,
        higher,
        seeds,
        looks,
        values,
        diverged,
        tracks,
    )
