"""What the pictures of a table show: the metric against the averaging window, and along training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emabench.runs.result import RAW
from emabench.tables.gather import Run
from emabench.tables.judge import Judged
from emabench.tables.statistics import Estimate, estimate


@dataclass(frozen=True)
class Point:
    """One average of an arm's trajectories. `tied`: by seed, it is not shown (at 5 %) to be worse than the best."""

    average: str
    window: float
    value: Estimate
    tied: bool
    rows: tuple[str, ...]  # labels of the table's rows that it is


@dataclass(frozen=True)
class WindowCurve:
    """Every average of an arm by its window, and the raw weights."""

    arm: str
    metric: str
    raw: Estimate | None
    points: Sequence[Point]
    best: Point | None  # of averages and raw weights alike None where raw is best
    steps: int


@dataclass(frozen=True)
class Track:
    """One average along training, over seeds."""

    average: str
    label: str
    points: Sequence[tuple[int, Estimate]]


def finished(judged: Judged, arm: str) -> list[Run]:
    """An arm's runs that have numbers."""
    return [run for run in judged.runs.get(arm, {}).values() if run and run.finished]


def window_curve(judged: Judged, arm: str, metric: str) -> WindowCurve | None:
    """The metric against the window; None where no average of the arm was measured with one protocol."""
    runs = finished(judged, arm)
    if not runs or len({run.result.measured_with.get(metric) for run in runs}) > 1:
        return None
    sign = 1 if judged.table.metrics[metric].better == "higher" else -1
    averages = dict.fromkeys(row.average for run in runs for row in run.result.rows)
    values = {average: _by_seed(runs, average, metric) for average in averages}
    values = {average: numbers for average, numbers in values.items() if numbers}
    means = {average: sign * _mean(list(numbers.values())) for average, numbers in values.items()}
    if not means:
        return None
    best = max(means, key=lambda average: means[average])
    points = []
    for average, numbers in values.items():
        window = next((w for run in runs if (w := run.window(average)) is not None), None)
        found = estimate(list(numbers.values()))
        if average == RAW or window is None or found is None:
            continue
        behind = [sign * (values[best][s] - numbers[s]) for s in sorted(set(values[best]) & set(numbers))]
        gap = estimate(behind)
        tied = gap is None or gap.low is None or gap.low <= 0
        points.append(Point(average, window, found, tied, _labels(judged, arm, average)))
    points.sort(key=lambda point: point.window)
    return WindowCurve(
        arm,
        metric,
        estimate(list(values.get(RAW, {}).values())),
        points,
        next((point for point in points if point.average == best), None),
        runs[0].result.steps,
    )


def tracks(judged: Judged, arm: str, metric: str) -> list[Track]:
    """Along training: the raw weights and the averages that are rows of the table, where that was measured."""
    runs = finished(judged, arm)
    wanted = [row.average for row in judged.rows.values() if row.spec.arm == arm]
    found = []
    for average in dict.fromkeys([RAW, *wanted]):
        by_step: dict[int, list[float]] = {}
        for run in runs:
            for step, value in run.measured(average, metric):
                by_step.setdefault(step, []).append(value)
        points = [(step, e) for step, values in sorted(by_step.items()) if (e := estimate(values))]
        if len(points) > 1:
            label = "raw" if average == RAW else average
            found.append(Track(average, label, points))
    return found


def _by_seed(runs: Sequence[Run], average: str, metric: str) -> dict[int, float]:
    found = {run.result.seed: run.value(average, metric) for run in runs}
    return {seed: value for seed, value in found.items() if value is not None}


def _labels(judged: Judged, arm: str, average: str) -> tuple[str, ...]:
    rows = judged.rows.values()
    return tuple(row.spec.label for row in rows if row.spec.arm == arm and row.average == average)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
