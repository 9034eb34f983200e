"""What the pictures of a table show: the metric against the averaging window, and along training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from emabench.runs.result import RAW
from emabench.tables import provenance
from emabench.tables.gather import Run
from emabench.tables.judge import Judged
from emabench.tables.statistics import ALPHA, Estimate, Most, estimate


@dataclass(frozen=True)
class Point:
    """One average of an arm's trajectories.

    `tied`: it is not shown to be worse than the best in most seeds (at 5 % over all ordered pairs of averages).
    `values`: by seed.
    """

    average: str
    window: float
    value: Estimate
    tied: bool
    rows: tuple[str, ...]  # labels of the table's rows that it is
    values: Mapping[int, float]


@dataclass(frozen=True)
class WindowCurve:
    """Averages by their window. `arm` says of which trajectories; "" where each is a trajectory of its own.

    `family`: with several such groups of trajectories, the row that all of one group are set against.
    """

    arm: str
    family: str
    metric: str
    without: str  # what has no averaging: the raw weights, or the row that the others are set against
    raw: Estimate | None  # its value
    raw_values: Mapping[int, float]
    ahead: bool  # the best is shown to be better than it in most seeds (at 5 %, as the best of so many)
    ahead_in: tuple[int, int]  # in so many seeds, of how many
    points: Sequence[Point]
    best: Point | None  # None where no average is better than none
    steps: int


@dataclass(frozen=True)
class Track:
    """One average along training, over seeds."""

    average: str
    label: str
    points: Sequence[tuple[int, Estimate]]
    seeds: Mapping[int, Sequence[tuple[int, float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Paired:
    """How one set of weights differs from another, seed by seed.

    `relative`: as shares of the other (−0.38 for −38 %), with the mean of the logarithms of ratios; else in the
    metric's unit. The interval of `mean` holds for all of those beside it together (Bonferroni).
    """

    by_seed: Mapping[int, float]
    mean: Estimate | None
    relative: bool


def paired(
    values: Mapping[int, float], over: Mapping[int, float], beside: int, relative: bool
) -> Paired | None:
    """The differences of seeds that both have; None where there is none. `beside`: how many are compared at once."""
    seeds = sorted(set(values) & set(over))
    if not seeds:
        return None
    level = 1 - ALPHA / max(1, beside)
    if not relative:
        changes = {seed: values[seed] - over[seed] for seed in seeds}
        return Paired(changes, estimate(list(changes.values()), level), relative)
    logs = {seed: math.log(values[seed] / over[seed]) for seed in seeds}
    mean = estimate(list(logs.values()), level)
    return Paired(
        {s: math.expm1(x) for s, x in logs.items()}, mean.map(math.expm1) if mean else None, relative
    )


def changes(judged: Judged, metric: str) -> tuple[dict[str, dict[str, Paired | None]], bool]:
    """By the row compared with, every row's change by seed, and whether these are relative: all are, or none is."""
    rows = [row for row in judged.rows.values() if row.against]
    cells = [row.cells[metric] for row in rows if row.cells[metric].paired]
    size = by_size(judged, metric)
    relative = all(cell.relative for cell in cells) and not size
    found: dict[str, dict[str, Paired | None]] = {}
    for row in rows:
        against = row.against or ""
        own, base = (
            {seed: abs(value) if size else value for seed, value in each.cells[metric].values.items()}
            for each in (row, judged.rows[against])
        )
        found.setdefault(against, {})[row.key] = paired(own, base, len(cells), relative)
    return found, relative


def by_size(judged: Judged, metric: str) -> bool:
    """Are the claims of this metric about its size, whichever its sign (a bias)?"""
    own = [claim.of for claim in judged.table.claims if claim.metric == metric]
    return bool(own) and all(of == "size" for of in own)


def against_base(curve: WindowCurve) -> tuple[str, dict[str, Paired | None], bool] | None:
    """What the averages of a curve are set against, and by average the change by seed; None without a second set."""
    base = curve.raw_values or next((p.values for p in curve.points if curve.without in p.rows), {})
    others = [point for point in curve.points if point.values is not base]
    if not base or not others:
        return None
    both = [*base.values(), *(value for point in others for value in point.values.values())]
    relative = min(both) > 0
    return curve.without, {p.average: paired(p.values, base, len(others), relative) for p in others}, relative


def finished(judged: Judged, arm: str) -> list[Run]:
    """An arm's runs that have numbers."""
    return [run for run in judged.runs.get(arm, {}).values() if run and run.finished]


def window_curves(judged: Judged, metric: str) -> list[WindowCurve]:
    """The metric against the window: of each arm's passive averages, and of rows that are decays of a target network."""
    of_arms = [window_curve(judged, arm, metric) for arm in judged.table.arms]
    return [curve for curve in [*of_arms, *_of_targets(judged, metric)] if curve and len(curve.points) > 1]


def window_curve(judged: Judged, arm: str, metric: str) -> WindowCurve | None:
    """Every passive average of an arm; None where there is nothing measured with one protocol and one code."""
    runs = finished(judged, arm)
    if len({run.result.measured_with.get(metric) for run in runs}) != 1 or _apart(judged, [arm]):
        return None
    averages = dict.fromkeys(row.average for run in runs for row in run.result.rows)
    values = {average: numbers for average in averages if (numbers := _by_seed(runs, average, metric))}
    windows = {average: next((w for run in runs if (w := run.window(average))), None) for average in values}
    labels = {average: _labels(judged, arm, average) for average in values}
    arms = dict.fromkeys(values, arm)
    return _curve(
        judged, arm, "", metric, values, arms, windows, labels, RAW, "the raw weights", runs[0].result.steps
    )


def _of_targets(judged: Judged, metric: str) -> Iterator[WindowCurve | None]:
    """Rows of trajectories of their own, by the window of the target network that each was trained with."""
    families: dict[str, list[str]] = {}
    for key, row in judged.rows.items():
        if row.spec.decay is not None and row.cells[metric].values:
            families.setdefault(_root(judged, key), []).append(key)
    for root, keys in families.items():
        values = {key: dict(judged.rows[key].cells[metric].values) for key in keys}
        without = root if root not in keys and judged.rows[root].cells[metric].values else None
        if without:
            values[without] = dict(judged.rows[without].cells[metric].values)
        arms = {key: judged.rows[key].spec.arm for key in values}
        if _apart(judged, list(arms.values())):
            continue
        windows = {key: judged.rows[key].window for key in values}
        labels = {key: (judged.rows[key].spec.label,) for key in values}
        family = f"against {judged.rows[root].spec.label}" if len(families) > 1 else ""
        steps = max(run.result.steps for key in keys for run in finished(judged, judged.rows[key].spec.arm))
        called = judged.rows[root].spec.label
        yield _curve(judged, "", family, metric, values, arms, windows, labels, without, called, steps)


def _apart(judged: Judged, arms: Sequence[str]) -> bool:
    """Do these arms' runs differ in what is not to be pooled?"""
    return bool(provenance.unlike([run for arm in arms for run in finished(judged, arm)], judged.pool))


def _root(judged: Judged, key: str) -> str:
    """The row at the end of the chain of what is compared with what."""
    seen = [key]
    while (above := judged.rows[seen[-1]].against) and above not in seen:
        seen.append(above)
    return seen[-1]


def _curve(
    judged: Judged,
    arm: str,
    family: str,
    metric: str,
    values: Mapping[str, Mapping[int, float]],
    arms: Mapping[str, str],
    windows: Mapping[str, float | None],
    labels: Mapping[str, tuple[str, ...]],
    without: str | None,
    called: str,
    steps: int,
) -> WindowCurve | None:
    """Points of everything but `without`, which is what they are to be better than; compared by seed."""
    if not values:
        return None
    seeds = judged.in_order(list(dict.fromkeys(arms.values())))
    looks = judged.looks(len(seeds))
    sign = 1 if judged.table.metrics[metric].better == "higher" else -1
    best = max(values, key=lambda name: sign * fmean(values[name].values()))
    points = []
    pairs = len(values) * (len(values) - 1)
    for name, numbers in values.items():
        window, mean = windows[name], estimate(list(numbers.values()))
        if name != without and window is not None and mean is not None:
            tied = not _better(values[best], numbers, sign, seeds, looks).shown(ALPHA / max(1, pairs))
            points.append(Point(name, window, mean, tied, labels[name], numbers))
    points.sort(key=lambda point: point.window)
    base = values.get(without, {}) if without else {}
    against = _better(values[best], base, sign, seeds, looks)
    return WindowCurve(
        arm,
        family,
        metric,
        called,
        estimate(list(base.values())),
        base,
        against.shown(ALPHA / max(1, len(values) - 1)),
        (against.count, len(against.hits)),
        points,
        next((point for point in points if point.average == best), None),
        steps,
    )


def _better(
    values: Mapping[int, float],
    over: Mapping[int, float],
    sign: int,
    seeds: Sequence[int],
    looks: tuple[int, ...],
) -> Most:
    """The statement that the one is better than the other in most seeds: one without a number is worse, as in claims."""
    worst = -math.inf
    pairs = [
        (sign * values[s] if s in values else worst, sign * over[s] if s in over else worst) for s in seeds
    ]
    return Most([one > other for one, other in pairs] if over else [], looks)


def tracks(judged: Judged, arm: str, metric: str) -> list[Track]:
    """Along training: the raw weights and the averages that are rows of the table, where that was measured."""
    runs = [run for run in finished(judged, arm) if not run.history_problem]
    averages = [row.average for row in judged.rows.values() if row.spec.arm == arm]
    result = []
    for average in dict.fromkeys([RAW, *averages]):
        by_step: dict[int, list[float]] = {}
        seeds = {run.result.seed: run.measured(average, metric) for run in runs}
        for track in seeds.values():
            for step, value in track:
                by_step.setdefault(step, []).append(value)
        points = [(step, e) for step, values in sorted(by_step.items()) if (e := estimate(values))]
        if len(points) > 1:
            label = "raw" if average == RAW else average
            result.append(Track(average, label, points, seeds))
    return result


def _by_seed(runs: Sequence[Run], average: str, metric: str) -> dict[int, float]:
    values = {run.result.seed: run.value(average, metric) for run in runs}
    return {seed: value for seed, value in values.items() if value is not None}


def _labels(judged: Judged, arm: str, average: str) -> tuple[str, ...]:
    rows = judged.rows.values()
    return tuple(row.spec.label for row in rows if row.spec.arm == arm and row.average == average)
