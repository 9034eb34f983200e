"""Rows of a table as measured: means and paired changes over seeds, what they were measured with, what is wrong with runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from emabench.averaging.profiles import window_of_decay
from emabench.runs.result import DamagedResult
from emabench.tables import spec
from emabench.tables.gather import Runs
from emabench.tables.parts import TableRow, at_scale
from emabench.tables.statistics import Estimate, estimate


@dataclass(frozen=True)
class Cell:
    """One metric of one row: the numbers by seed, and how they differ from the row it is compared with."""

    values: Mapping[int, float]
    mean: Estimate | None
    paired: Mapping[int, float]  # differences by seed, in the metric's unit
    change: Estimate | None  # their mean
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


def measured_with(table: spec.Table, runs: Runs) -> tuple[dict[str, str], dict[str, str]]:
    """By metric what it was measured with, and for metrics where runs differ in that, the problem in words."""
    by_metric: dict[str, dict[str, int]] = {metric: {} for metric in table.metrics}
    for run in (run for by_seed in runs.values() for run in by_seed.values() if run and run.finished):
        for metric, counts in by_metric.items():
            if metric in run.result.metrics:
                text = run.result.measured_with.get(metric, "")
                counts[text] = counts.get(text, 0) + 1
    mixed = {
        metric: f"{table.metrics[metric].label}: the runs differ in what it was measured with, "
        + "; ".join(f"{count} with {text or 'nothing stated'}" for text, count in sorted(counts.items()))
        + ". Such values are not set beside each other"
        for metric, counts in by_metric.items()
        if len(counts) > 1
    }
    same = {
        m: next(iter(counts)) for m, counts in by_metric.items() if len(counts) == 1 and next(iter(counts))
    }
    return same, mixed


def problems_of(table: spec.Table, scale: str, runs: Runs) -> list[str]:
    problems = []
    consequences = {
        "diverged": "they are excluded from the means and count as the worst outcome in every verdict",
        "failed": "verdicts wait for them",
    }
    for arm, by_seed in runs.items():
        for status, consequence in consequences.items():
            seeds = [seed for seed, run in by_seed.items() if run and run.result.status == status]
            if seeds:
                listed = ", ".join(map(str, seeds))
                problems.append(
                    f"arm {arm}: {len(seeds)} of {len(by_seed)} runs {status} (seed {listed}); {consequence}"
                )
        for run in by_seed.values():
            if run and (run.result.task, run.result.scale) != (table.task, scale):
                raise ValueError(f"run {run.result.run_id} is of {run.result.task}, {run.result.scale}")
            if run and run.finished:
                for metric, asked in table.metrics.items():
                    direction = run.result.metrics.get(metric)
                    if direction and direction != asked.better:
                        raise DamagedResult(
                            f"{metric} is better {direction} in run {run.result.run_id}, {asked.better} in the table"
                        )
    return problems + _not_finite(table, scale, runs) + _irregular(runs)


def _irregular(runs: Runs) -> list[str]:
    """Finished runs that were resumed on another arithmetic, or whose history has gaps."""
    problems = []
    for arm, by_seed in runs.items():
        seeds: dict[str, list[int]] = {}
        for seed, run in by_seed.items():
            for note in run.irregularities if run and run.finished else ():
                seeds.setdefault(note, []).append(seed)
        problems += [f"arm {arm}, seed {', '.join(map(str, its))}: {note}" for note, its in seeds.items()]
    return problems


def _not_finite(table: spec.Table, scale: str, runs: Runs) -> list[str]:
    """Rows of finished runs whose metric has no number."""
    problems = []
    for key, row in table.rows.items():
        average = table.average(key, scale)
        finished = {s: run for s, run in runs.get(row.arm, {}).items() if run and run.finished}
        for metric in table.metrics:
            seeds = [
                s
                for s, run in finished.items()
                if metric in run.result.metrics
                and run.result.row(average)
                and run.value(average, metric) is None
            ]
            if seeds:
                problems.append(
                    f"{row.label}: {table.metrics[metric].label} is not finite in {len(seeds)} of {len(finished)} runs "
                    f"(seed {', '.join(map(str, seeds))}); excluded from the means, the worst outcome in every verdict"
                )
    return problems


def measured_row(
    table: spec.Table, key: str, scale: str, runs: Runs, mixed: set[str], unlike: set[str]
) -> MeasuredRow:
    by_seed = runs.get(table.rows[key].arm, {})
    average, against = table.average(key, scale), table.against(key)
    decay = at_scale(table.rows[key].decay, scale)
    windows = [
        run.window(average) if decay is None else window_of_decay(decay) for run in by_seed.values() if run
    ]
    status = [run.result.status for run in by_seed.values() if run]
    cells = {}
    for metric in table.metrics:
        values = (
            {}
            if metric in mixed or table.rows[key].arm in unlike
            else _values(table, key, scale, runs, metric)
        )
        base = _values(table, against, scale, runs, metric) if against and values else {}
        seeds = sorted(set(values) & set(base))
        positive = all(values[seed] > 0 and base[seed] > 0 for seed in seeds)
        logs = estimate([math.log(values[seed] / base[seed]) for seed in seeds]) if positive else None
        cells[metric] = Cell(
            values,
            estimate(list(values.values())),
            {seed: values[seed] - base[seed] for seed in seeds},
            estimate([values[seed] - base[seed] for seed in seeds]),
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
    numbers = {}
    for seed, run in sorted(runs.get(table.rows[key].arm, {}).items()):
        value = run.value(average, metric) if run else None
        if value is not None:
            numbers[seed] = value
    return numbers
