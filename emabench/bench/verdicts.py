"""how often a verdict is false: tables with a known truth, simulated, through the whole path that real ones take

A simulated table has claims of every type, or four of one. Its runs are results in memory, judged as runs from disk
are. A verdict is false where the truth of its stated estimand says otherwise; what counts is the share of tables with
at least one false verdict.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from emabench.bench.worlds import ROWS, WORLDS, Drawn, World
from emabench.runs.result import Result, Row
from emabench.tables.claim import Claim
from emabench.tables.curves import window_curve
from emabench.tables.gather import Run, Runs
from emabench.tables.judge import Judged, Ruling, judge, survivors
from emabench.tables.spec import Table
from emabench.tables.verdict import DECIDED, Kind, Verdict

POPULATION = 200_000  # seeds from which the truth is taken; a share within 0.005 of a half is one half
TARGET, GRID, LAST = 5.0, 40, 100_000  # of the steps claims: measured so often; when training ends
ALONG = list(ROWS)
CLAIMS: list[dict[str, Any]] = [
    {"type": "order", "along": ALONG, "margin": 0.1, "article": "better", "literature": "worse"},
    {"type": "difference", "row": "middle", "over": "raw", "margin": 0.1, "article": "better", "literature": "equal"},
    {"type": "difference", "row": "short", "over": "raw", "article": "better", "literature": "worse"},
    {"type": "gain", "row": "long", "over": "raw", "article": -0.5, "literature": [-0.2, 0.0], "tolerance": 0.2},
    {"type": "optimum", "along": ALONG, "article": "interior", "literature": ["middle"]},
    {"type": "diverged", "row": "long", "over": "raw", "article": "fewer"},
    {"type": "steps", "row": "long", "over": "raw", "target": TARGET, "article": "-40%", "tolerance": "10%"},
]  # fmt: skip
FOUR: list[dict[str, Any]] = [
    {"type": "difference", "row": "short", "over": "raw", "article": "better"},
    {"type": "difference", "row": "middle", "over": "raw", "article": "better"},
    {"type": "difference", "row": "long", "over": "raw", "margin": 0.15, "article": "equal"},
    {"type": "gain", "row": "long", "over": "short", "article": -0.5, "tolerance": 0.2},
]


def table(claims: Sequence[Mapping[str, Any]], looks: Sequence[int]) -> Table:
    """A table with these claims. Every row is an arm of its own, so that each may diverge by itself."""
    common = {"text": "simulated", "metric": "loss", "sources": ["simulated"]}
    return Table.model_validate(
        {
            "name": "simulated",
            "title": "Simulated",
            "section": "0",
            "question": "Is every verdict right?",
            "task": "simulated",
            "exact": True,
            "metrics": {"loss": {"label": "loss", "better": "lower"}},
            "seeds": {"small": {"first": 100, "looks": list(looks)}},
            "arms": {key: [] for key in ROWS},
            "rows": {key: {"label": key, "arm": key, "average": "raw"} for key in ROWS},
            "claims": [{**common, **claim} for claim in claims],
            "sources": {"simulated": {"text": "simulated", "mark": "V"}},
        }
    )


def runs(drawn: Drawn) -> Runs:
    """The runs of a drawn table."""
    return {key: {100 + i: _run(drawn, i, j) for i in range(len(drawn.values))} for j, key in enumerate(ROWS)}


def _run(drawn: Drawn, i: int, j: int) -> Run:
    status = "finished"
    if drawn.diverged is not None and drawn.diverged[i, j]:
        status = "diverged"
    if drawn.failed is not None and drawn.failed[i, j]:
        status = "failed"
    value: float | None = float(drawn.values[i, j])
    if value is not None and math.isnan(value):
        value = None
    track: dict[str, dict[str, list[tuple[int, float]]]] = {}
    if drawn.steps is not None:
        reached = drawn.steps[i, j]
        at = [(GRID * math.ceil(reached / GRID), 0.0)] if math.isfinite(reached) else []
        before = [(step, 2 * TARGET) for step in range(GRID, at[0][0] if at else LAST // 100, GRID)]
        track = {"raw": {"loss": [*before, *at]}}
        value = 0.0 if at else 2 * TARGET
    result = Result(
        run_id=f"simulated-{ROWS[j]}-{i}", task="simulated", scale="small", seed=100 + i, steps=LAST,
        status=status, rows=(Row("raw", {}, {"loss": value}),), metrics={"loss": "lower"}, measured_with={},  # type: ignore[arg-type]
        references={}, timing={}, environment={"commit": drawn.commits.get(ROWS[j], "one")},
    )  # fmt: skip
    return Run(result, evaluations=track)


class Truth:
    """What is true of a world, from many of its seeds: shares of seeds in which something is so."""

    def __init__(self, drawn: Drawn) -> None:
        self.values = drawn.values.copy()
        if drawn.steps is not None:
            self.values = np.where(np.isfinite(drawn.steps), 0.0, 2 * TARGET)
        lost = np.isnan(self.values)
        self.diverged = drawn.diverged if drawn.diverged is not None else np.zeros_like(lost)
        hidden = drawn.failed if drawn.failed is not None else np.zeros_like(lost)
        self.lost = (lost | self.diverged) & ~hidden
        self.steps = drawn.steps

    def gain(self, row: str, over: str) -> np.ndarray:
        """By how much a row is better; ±inf where one of the two has no number, NaN where both have none."""
        i, j = ROWS.index(row), ROWS.index(over)
        x = np.where(np.isnan(self.values), 0.0, self.values)
        return _scored(x[:, j] - x[:, i], self.lost[:, i], self.lost[:, j])

    def step_change(self, row: str, over: str) -> np.ndarray:
        """The logarithm of the ratio of steps; inf where the row never reaches it."""
        assert self.steps is not None
        i, j = ROWS.index(row), ROWS.index(over)
        never = ~np.isfinite(self.steps)
        steps = np.where(never, 1.0, self.steps)
        return -_scored(-np.log(steps[:, i] / steps[:, j]), never[:, i], never[:, j])


def _scored(x: np.ndarray, row_lost: np.ndarray, over_lost: np.ndarray) -> np.ndarray:
    x = np.where(row_lost, -np.inf, np.where(over_lost, np.inf, x))
    return np.where(row_lost & over_lost, np.nan, x)


def most(condition: np.ndarray) -> bool:
    """In more than half of all seeds."""
    return float(np.mean(condition)) > 0.505


def half(condition: np.ndarray) -> bool:
    """In at least half of all seeds."""
    return float(np.mean(condition)) > 0.495


def is_true(claim: Any, expected: Any, verdict: Verdict, truth: Truth) -> bool:
    """Does the truth bear this verdict out? The words that it adds are held to it as well."""
    return _TRUE[claim.type](claim, expected, verdict, truth)


def _difference(claim: Any, expected: str, verdict: Verdict, truth: Truth) -> bool:
    x, margin = truth.gain(claim.row, claim.over), claim.margin.value
    if expected == "equal":
        inside = half(x >= -margin) and half(x <= margin)
        out = x > margin if verdict.why.startswith("better") else x < -margin
        return inside if verdict.kind is Kind.HOLDS else most(out)
    x = x if expected == "better" else -x
    if verdict.kind is Kind.NO_EFFECT:
        return not most(x > margin) and (not verdict.why.startswith(expected) or most(x > 0))
    return {
        Kind.HOLDS: most(x > margin),
        Kind.OPPOSITE: most(x < 0),
        Kind.FAILS: not most(x > margin),
        Kind.PARTLY: most(x > 0),
    }[verdict.kind]


def _band(x: np.ndarray, low: float, high: float, verdict: Verdict) -> bool:
    if low + high < 0:
        x, low, high = -x, -high, -low
    larger, smaller = "larger" in verdict.why, "smaller" in verdict.why
    size = (not larger or most(x > high)) and (not smaller or most(x < low))
    return {
        Kind.HOLDS: half(x >= low) and half(x <= high),
        Kind.OPPOSITE: most(x < 0),
        Kind.FAILS: size,
        Kind.PARTLY: most(x > 0) and size,
    }[verdict.kind]


def _gain(claim: Any, expected: Any, verdict: Verdict, truth: Truth) -> bool:
    tolerance = claim.tolerance.value
    low, high = expected[0].value - tolerance, expected[1].value + tolerance
    return _band(-truth.gain(claim.row, claim.over), low, high, verdict)


def _steps(claim: Any, expected: Any, verdict: Verdict, truth: Truth) -> bool:
    tolerance = claim.tolerance.value
    low, high = math.log1p(expected[0].value - tolerance), math.log1p(expected[1].value + tolerance)
    return _band(truth.step_change(claim.row, claim.over), low, high, verdict)


def _order(claim: Any, expected: str, verdict: Verdict, truth: Truth) -> bool:
    turn, margin = (1 if expected == "better" else -1), claim.margin.value
    steps = [turn * truth.gain(after, before) for before, after in pairwise(claim.along)]
    total = turn * truth.gain(claim.along[-1], claim.along[0])
    back = any(most(step < -margin) for step in steps)
    return {
        Kind.HOLDS: all(most(step > 0) for step in steps),
        Kind.OPPOSITE: most(total < 0),
        Kind.NO_EFFECT: not most(total > margin),
        Kind.PARTLY: most(total > 0) and (back or "not every" not in verdict.part),
        Kind.FAILS: back,
    }[verdict.kind]


def _optimum(claim: Any, expected: Any, verdict: Verdict, truth: Truth) -> bool:
    inside, ends = claim.along[1:-1], (claim.along[0], claim.along[-1])

    def beats(row: str, over: str) -> bool:
        return most(truth.gain(row, over) > 0)

    anywhere = any(all(beats(row, end) for end in ends) for row in inside)
    unbeaten = any(not any(beats(row, end) for row in inside) for end in ends)
    if expected == "interior":
        return {Kind.HOLDS: anywhere, Kind.FAILS: unbeaten}[verdict.kind]
    named = any(all(beats(row, other) for other in claim.along if other not in expected) for row in expected)
    others = [row for row in inside if row not in expected]
    partly_elsewhere = any(all(beats(row, each) for each in [*ends, *expected]) for row in others)
    partly = partly_elsewhere if "elsewhere" in verdict.part else anywhere
    return {Kind.HOLDS: named, Kind.PARTLY: partly, Kind.FAILS: unbeaten}[verdict.kind]


def _diverged(claim: Any, expected: str, verdict: Verdict, truth: Truth) -> bool:
    row, over = (truth.diverged[:, ROWS.index(key)] for key in (claim.row, claim.over))
    only_row, only_over = np.mean(row & ~over), np.mean(over & ~row)
    right = only_over - only_row if expected == "fewer" else only_row - only_over
    return bool(right > 0.004 if verdict.kind is Kind.HOLDS else right < -0.004)


_TRUE: dict[str, Callable[[Any, Any, Verdict, Truth], bool]] = {
    "difference": _difference,
    "gain": _gain,
    "steps": _steps,
    "order": _order,
    "optimum": _optimum,
    "diverged": _diverged,
}


@dataclass(frozen=True)
class Rates:
    """Of simulated tables: the share with a false verdict, and the share of verdicts that decide."""

    world: str
    claims: str
    seeds: int
    tables: int
    false: float
    decided: float


def rates(world: World, claims: str, seeds: int, tables: int, seed: int = 0) -> Rates:
    """Simulate, judge and count."""
    rng = np.random.default_rng([seed, seeds, *f"{world.name} {claims}".encode()])
    listed = {"all types": CLAIMS, "four": FOUR}[claims]
    spec = table(listed, world.looks or (seeds,))
    common = None if _own_truth(world) else Truth(world.draw(np.random.default_rng(1), POPULATION))
    wrong, decided, total = 0, 0, 0
    known: dict[Any, bool] = {}
    for _ in range(tables):
        drawn = world.draw(rng, max(spec.plan("small").looks))
        truth = common or Truth(_population(drawn, rng))
        known = known if common else {}
        false = False
        for judged in _looked_at(spec, runs(drawn), world):
            given = list(_decided(judged.rulings, spec))
            for claim, expected, verdict in given:
                key = id(claim), str(expected), verdict.kind, verdict.part, verdict.why
                if key not in known:
                    known[key] = is_true(claim, expected, verdict, truth)
                false |= not known[key]
        wrong += false
        decided += len(given)
        total += sum(len(ruling.verdicts) for ruling in judged.rulings)
    return Rates(world.name, claims, max(spec.plan("small").looks), tables, wrong / tables, decided / total)


def _own_truth(world: World) -> bool:
    return world.draw(np.random.default_rng(1), 2).same_world is not None


def _population(drawn: Drawn, rng: np.random.Generator) -> Drawn:
    assert drawn.same_world
    return drawn.same_world(rng, 4000)


def _looked_at(spec: Table, everything: Runs, world: World) -> Iterator[Judged]:
    """The table judged once, or after every seed: whoever may stop at any of them has seen all of these."""
    last = max(spec.plan("small").looks)
    for n in range(1, last + 1) if world.every_n else [last]:
        yield judge(spec, "small", {arm: dict(list(by.items())[:n]) for arm, by in everything.items()})


def _decided(rulings: Sequence[Ruling], spec: Table) -> Iterator[tuple[Claim, Any, Verdict]]:
    for ruling in rulings:
        expectations = ruling.claim.expectations(spec.rows)
        for who, verdict in ruling.verdicts.items():
            if verdict.kind in DECIDED:
                yield ruling.claim, expectations[who], verdict


def overview(tables: int, seeds: int = 11, several: int = 8) -> tuple[float, float, float]:
    """Of overviews of several tables without any effect: with a false verdict, with a false marked one; a table's rate."""
    rng = np.random.default_rng([2, seeds])
    world = next(w for w in WORLDS if w.name == "no effect, normal")
    spec, truth = table(FOUR, (seeds,)), Truth(world.draw(np.random.default_rng(1), POPULATION))
    any_false = marked_false = single = 0
    for _ in range(tables):
        judged = survivors([judge(spec, "small", runs(world.draw(rng, seeds))) for _ in range(several)])
        false = [
            [verdict for claim, expected, verdict in _decided(each.rulings, spec) if not is_true(claim, expected, verdict, truth)]
            for each in judged
        ]  # fmt: skip
        any_false += any(map(bool, false))
        single += sum(map(bool, false))
        marked_false += any(verdict.overview for each in false for verdict in each)
    return any_false / tables, marked_false / tables, single / tables / several


def best_of_six(tables: int, seeds: int = 11) -> tuple[float, float]:
    """Of pages with six averages as good as none: where one is called ahead, and where one is called worse than the best."""
    rng = np.random.default_rng(3)
    names = ["raw", *(f"ema_{i}" for i in range(6))]
    spec = table(FOUR, (seeds,))
    ahead = behind = 0
    for _ in range(tables):
        values = 10 + rng.normal(size=(seeds, 1)) + 0.3 * rng.normal(size=(seeds, 7))
        by_seed: dict[int, Run | None] = {}
        for i in range(seeds):
            described = [{"describe": {"centre_of_mass": 10.0 * k}} for k in range(7)]
            rows = tuple(
                Row(name, described[k], {"loss": float(values[i, k])}) for k, name in enumerate(names)
            )
            by_seed[100 + i] = Run(
                Result(
                    run_id=f"six-{i}", task="simulated", scale="small", seed=100 + i, steps=LAST, status="finished",
                    rows=rows, metrics={"loss": "lower"}, measured_with={}, references={}, timing={}, environment={},
                )
            )  # fmt: skip
        judged = judge(spec, "small", {"raw": by_seed})
        curve = window_curve(judged, "raw", "loss")
        assert curve
        ahead += curve.ahead
        behind += any(not point.tied for point in curve.points)
    return ahead / tables, behind / tables


@cache
def upper(rate: float, tables: int) -> float:
    """The upper end of the exact 95 % interval of a rate that was simulated."""
    from emabench.tables.boundary import at_most

    return at_most(round(rate * tables), tables, 0.975)


def main(argv: list[str]) -> None:
    """`emabench bench verdicts [--tables N] [--seeds 11,20]`"""
    parser = argparse.ArgumentParser(prog="emabench bench verdicts", description=__doc__)
    parser.add_argument("--tables", type=int, default=1000, help="simulated tables of each world")
    parser.add_argument("--seeds", default="11,20", help="seeds of each table, several with commas")
    args = parser.parse_args(argv)
    began = time.monotonic()
    families = {
        name: len(judge(table(claims, (5,)), "small", {}).families)
        for name, claims in (("all types", CLAIMS), ("four", FOUR))
    }
    print(
        f"{args.tables} simulated tables a line. false: share of tables with any false verdict (target ≤ 5 %), with the upper\n"
        f"end of its exact 95 % interval; decided: share of verdicts that decide. all types: {len(CLAIMS)} claims of six types "
        f"in\n{families['all types']} families of statements; four: four claims in {families['four']}.\n"
    )
    print(
        f"{'world':<26} {'claims':<10} {'seeds':>5} {'false':>7} {'(up to)':>8} {'decided':>8}  what is true"
    )
    worst = 0.0
    for world in WORLDS:
        for claims in ("all types", "four"):
            if "steps" in world.name and claims == "four":
                continue  # its claims are not about steps
            numbers = [0] if world.looks else [int(n) for n in args.seeds.split(",")]
            for n in numbers:
                tables = max(2, args.tables // 4) if world.every_n else args.tables
                result = rates(world, claims, n, tables)
                worst = max(worst, result.false)
                print(
                    f"{result.world:<26} {claims:<10} {result.seeds:>5} {result.false:>7.2%} "
                    f"{f'({upper(result.false, tables):.1%})':>8} {result.decided:>8.1%}  {world.about}",
                    flush=True,
                )
    any_false, marked, single = overview(max(2, args.tables // 4))
    ahead, behind = best_of_six(args.tables)
    print(
        f"\neight tables of four null claims on one overview, 11 seeds: {any_false:.1%} with any false verdict "
        f"({single:.2%} of tables), {marked:.1%} with a false one that is marked as holding beside all\n"
        f"six averages as good as none, 11 seeds: one called ahead of none in {ahead:.1%} of pages, one called worse than "
        f"the best in {behind:.1%}\n"
        f"worst world: {worst:.2%}; {time.monotonic() - began:.0f} s"
    )
