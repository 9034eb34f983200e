"""how often a verdict is false: tables with a known truth, simulated, through the whole path that real ones take

Every simulated table has claims of every kind. Its runs are results in memory, judged as runs from disk are. A
verdict is false where the truth that was planted says otherwise; what counts is the share of tables with at least
one false verdict.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emabench.runs.result import RAW, Result, Row
from emabench.tables.gather import Run
from emabench.tables.judge import judge
from emabench.tables.spec import Table
from emabench.tables.verdict import Kind

ROWS = (RAW, "ema_0.9", "ema_0.99", "ema_0.999")
SPREADS = np.array((0.15, 0.05, 0.05, 0.05))  # of the logarithm of each row's metric: raw weights are noisy
SHARED = 0.2  # what all rows of a run share


@dataclass(frozen=True)
class Truth:
    """A simulated world: the true logarithm of the metric by row, and the noise of a row around it."""

    name: str
    logs: tuple[float, ...]
    noise: Callable[[np.random.Generator, int], np.ndarray]


def normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=n)


def heavy(rng: np.random.Generator, n: int) -> np.ndarray:
    """Student's t with 3 degrees of freedom, of spread 1: now and then a run that is far off."""
    return rng.standard_t(3, n) / math.sqrt(3)


def skewed(rng: np.random.Generator, n: int) -> np.ndarray:
    """A log-normal of mean 0 and spread 1: mostly a little better, sometimes much worse."""
    x = rng.lognormal(0, 0.75, n)
    mean, spread = math.exp(0.75**2 / 2), math.sqrt((math.exp(0.75**2) - 1) * math.exp(0.75**2))
    return (x - mean) / spread


def rare(rng: np.random.Generator, n: int) -> np.ndarray:
    """One run in ten is five times as noisy."""
    x = rng.normal(size=n) * np.where(rng.random(n) < 0.1, 5.0, 1.0)
    return x / math.sqrt(0.9 + 0.1 * 25)


NOTHING = (0.0, 0.0, 0.0, 0.0)
SMALL = (0.0, -0.03, -0.06, -0.09)
LARGE = (0.0, -0.3, -0.45, -0.55)
BENT = (0.0, -0.3, -0.45, -0.2)  # best inside
BESIDE = (0.0, -0.32, -0.30, -0.10)  # best inside, though not where it is expected
EDGE = (
    0.0,
    0.0,
    -math.log1p(0.05),
    math.log(0.67),
)  # at a threshold of each claim, where errors are likeliest
TRUTHS = (
    *(Truth(f"no effect, {noise.__name__}", NOTHING, noise) for noise in (normal, heavy, skewed, rare)),
    *(Truth(f"at the limits, {noise.__name__}", EDGE, noise) for noise in (normal, heavy, skewed, rare)),
    Truth("small effect, normal", SMALL, normal),
    Truth("large effect, normal", LARGE, normal),
    Truth("large effect, heavy", LARGE, heavy),
    Truth("best inside, normal", BENT, normal),
    Truth("best beside, normal", BESIDE, normal),
)


def table() -> Table:
    """A table with the claims that compare rows' values; those of steps and of diverged seeds are not in it."""
    rows = {
        key: {"label": key, "arm": "only", "average": average}
        for key, average in zip(("raw", "short", "middle", "long"), ROWS, strict=True)
    }
    along = ["raw", "short", "middle", "long"]
    claims: list[dict[str, Any]] = [
        {"type": "order", "along": along, "margin": "5%", "article": "better", "literature": "worse"},
        {
            "type": "difference",
            "row": "middle",
            "over": "raw",
            "margin": "5%",
            "article": "better",
            "literature": "equal",
        },
        {
            "type": "difference",
            "row": "short",
            "over": "raw",
            "margin": "0%",
            "article": "better",
            "literature": "worse",
        },
        {
            "type": "gain",
            "row": "long",
            "over": "raw",
            "article": "-38%",
            "literature": ["-10%", "-5%"],
            "tolerance": "5%",
        },
        {"type": "optimum", "along": along, "article": "interior", "literature": ["middle"]},
    ]
    common = {"text": "simulated", "metric": "fid", "sources": ["simulated"]}
    return Table.model_validate(
        {
            "name": "simulated",
            "title": "Simulated",
            "section": "0",
            "question": "Is every verdict right?",
            "task": "simulated",
            "metrics": {"fid": {"label": "FID", "better": "lower"}},
            "seeds": 5,
            "arms": {"only": []},
            "rows": rows,
            "claims": [{**common, **claim} for claim in claims],
            "sources": {"simulated": {"text": "simulated", "mark": "V"}},
        }
    )


def simulate(truth: Truth, seeds: int, rng: np.random.Generator) -> dict[str, dict[int, Run | None]]:
    """Runs of one simulated table."""
    runs: dict[int, Run | None] = {}
    own = np.stack([truth.noise(rng, seeds) for _ in ROWS], axis=1)
    for seed in range(seeds):
        logs = np.array(truth.logs) + SHARED * rng.normal() + SPREADS * own[seed]
        rows = tuple(
            Row(name, {}, {"fid": float(math.exp(log))}) for name, log in zip(ROWS, logs, strict=True)
        )
        runs[seed] = Run(
            Result(
                run_id=f"simulated-{seed}", task="simulated", scale="small", seed=seed, steps=1000,
                status="finished", rows=rows, metrics={"fid": "lower"}, measured_with={}, references={},
                timing={}, environment={},
            )
        )  # fmt: skip
    return {"only": runs}


def right(truth: Truth) -> dict[tuple[int, str], set[Kind]]:
    """By claim and by who expects, the verdicts that are true of this world. (Undecided is never false.)"""
    gains = [-log for log in truth.logs]  # lower is better
    steps = np.diff(gains)
    margin, end = math.log1p(0.05), gains[-1]
    found: dict[tuple[int, str], set[Kind]] = {}
    for who, turn in (("article", 1), ("literature", -1)):
        holds = {Kind.CONTRADICTED} if min(turn * steps) < -margin or turn * end < margin else set()
        if min(turn * steps) > 0:
            holds.add(Kind.REPRODUCED)
        trend = turn * sum((i - 1.5) * gain for i, gain in enumerate(gains))
        found[0, who] = holds | ({Kind.DIRECTION} if trend > 0 else set())
    x = gains[2]
    found[1, "article"] = _kinds(reproduced=x > 0, direction=0 < x < margin, contradicted=x < margin)
    found[1, "literature"] = _kinds(reproduced=abs(x) < margin, direction=False, contradicted=abs(x) > margin)
    x = gains[1]
    found[2, "article"] = _kinds(reproduced=x > 0, direction=False, contradicted=x < 0)
    found[2, "literature"] = _kinds(reproduced=x < 0, direction=False, contradicted=x > 0)
    x = math.expm1(truth.logs[3])
    for who, low, high in (("article", -0.43, -0.33), ("literature", -0.15, 0.0)):
        inside = low < x < high
        # The literature's band ends at zero, so that its direction is no claim.
        found[3, who] = _kinds(
            reproduced=inside, direction=x < 0 and who == "article", contradicted=not low <= x <= high
        )
    inside_best = max(gains[1:3]) > max(gains[0], gains[3])
    end_best = max(gains[0], gains[3]) > max(gains[1:3])
    found[4, "article"] = _kinds(reproduced=inside_best, direction=False, contradicted=end_best)
    middle = gains[2] > max(gains[0], gains[1], gains[3])
    found[4, "literature"] = _kinds(reproduced=middle, direction=inside_best, contradicted=end_best)
    return found


def _kinds(*, reproduced: bool, direction: bool, contradicted: bool) -> set[Kind]:
    kinds = zip(
        (Kind.REPRODUCED, Kind.DIRECTION, Kind.CONTRADICTED),
        (reproduced, direction, contradicted),
        strict=True,
    )
    return {kind for kind, holds in kinds if holds}


@dataclass(frozen=True)
class Rates:
    """Of many simulated tables: the share with a false verdict, and the share of verdicts that decide."""

    truth: str
    seeds: int
    tables: int
    false: float
    decided: float
    kinds: Mapping[Kind, float]


def rates(truth: Truth, seeds: int, tables: int, seed: int = 0) -> Rates:
    """Simulate, judge and count."""
    rng = np.random.default_rng([seed, seeds, *truth.name.encode()])
    spec, holds = table(), right(truth)
    wrong, count = 0, Counter[Kind]()
    for _ in range(tables):
        judged = judge(spec, "small", simulate(truth, seeds, rng))
        given = list(_verdicts(judged.rulings))
        count.update(kind for _, _, kind in given)
        wrong += any(kind is not Kind.UNDECIDED and kind not in holds[i, who] for i, who, kind in given)
    total = sum(count.values())
    return Rates(
        truth.name,
        seeds,
        tables,
        wrong / tables,
        1 - count[Kind.UNDECIDED] / total,
        {kind: count[kind] / total for kind in Kind},
    )


def _verdicts(rulings: Sequence[Any]) -> Iterator[tuple[int, str, Kind]]:
    for i, ruling in enumerate(rulings):
        for who, verdict in ruling.verdicts.items():
            yield i, who, verdict.kind


def main(argv: list[str]) -> None:
    """`emabench bench verdicts [--tables N] [--seeds 5,10]`"""
    parser = argparse.ArgumentParser(prog="emabench bench verdicts", description=__doc__)
    parser.add_argument("--tables", type=int, default=1000, help="simulated tables of each kind")
    parser.add_argument("--seeds", default="5,10", help="seeds of each table, several with commas")
    asked = parser.parse_args(argv)
    print(
        f"{asked.tables} simulated tables each, 10 verdicts a table; false: tables with any false verdict (target ≤ 5%)\n"
    )
    print(f"{'world':<26} {'seeds':>5} {'false':>7} {'decided':>8}   reproduced  direction  contradicted")
    for truth in TRUTHS:
        for seeds in map(int, asked.seeds.split(",")):
            found = rates(truth, seeds, asked.tables)
            shares = "".join(
                f"{found.kinds[k]:>12.1%}" for k in (Kind.REPRODUCED, Kind.DIRECTION, Kind.CONTRADICTED)
            )
            print(
                f"{found.truth:<26} {seeds:>5} {found.false:>7.2%} {found.decided:>8.1%} {shares}", flush=True
            )
