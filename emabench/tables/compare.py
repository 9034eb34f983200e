"""Any runs side by side: those that differ in the seed alone are one group, groups are compared by seed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from emabench.config import PRIVATE, Config, without_defaults
from emabench.errors import UserError
from emabench.tables.gather import Run
from emabench.tables.statistics import Estimate, estimate

APART = PRIVATE | {"seed"}


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, by seed. `differs`: what sets it apart from the other groups, as key=value."""

    runs: Mapping[int, Run]
    differs: tuple[str, ...]

    def values(self, average: str, metric: str) -> dict[int, float]:
        """By seed: what was measured."""
        values = {seed: run.value(average, metric) for seed, run in self.runs.items()}
        return {seed: value for seed, value in values.items() if value is not None}

    def mean(self, average: str, metric: str) -> Estimate | None:
        return estimate(list(self.values(average, metric).values()))

    @property
    def diverged(self) -> int:
        return sum(run.result.status == "diverged" for run in self.runs.values())


@dataclass(frozen=True)
class Comparison:
    """Groups of runs of one task. `unlike`: metrics that were not measured with the same everywhere, and with what."""

    task: str
    groups: Sequence[Group]
    metrics: Mapping[str, str]
    averages: Sequence[str]
    unlike: Mapping[str, Sequence[str]]

    def change(self, group: Group, average: str, metric: str) -> Estimate | None:
        """How a group differs from the first, paired by seed; None where no seed is in both."""
        if metric in self.unlike:
            return None
        own, first = group.values(average, metric), self.groups[0].values(average, metric)
        return estimate([own[seed] - first[seed] for seed in sorted(set(own) & set(first))])


def compare(runs: Sequence[Run]) -> Comparison:
    """Group runs by configuration; of two runs of one seed the second begins a group of its own.

    Raises UserError where they are of different tasks.
    """
    tasks = sorted({run.result.task for run in runs})
    if len(tasks) != 1:
        raise UserError(f"compare: runs of {' and '.join(tasks)}; compare runs of one task")
    grouped: dict[tuple[str, int], dict[int, Run]] = {}
    for run in runs:
        config = _deciding(run)
        text = json.dumps(config, sort_keys=True, default=str) if config else run.result.run_id
        again = next(n for n in count() if run.result.seed not in grouped.get((text, n), {}))
        grouped.setdefault((text, again), {})[run.result.seed] = run
    flat = [dict(_flat(_deciding(next(iter(group.values()))))) for group in grouped.values()]
    groups = []
    for ((text, _), group), config in zip(grouped.items(), flat, strict=True):
        keys = sorted(
            {key for other in flat for key in {**config, **other} if config.get(key) != other.get(key)}
        )
        differs = tuple(f"{key}={config.get(key, '(default)')}" for key in keys)
        if sum(other == text for other, _ in grouped) > 1:
            differs += (str(next(iter(group.values())).path),)
        groups.append(Group(dict(sorted(group.items())), differs))
    finished = [run for run in runs if run.finished]
    metrics = {name: way for run in finished for name, way in run.result.metrics.items()}
    averages = list(dict.fromkeys(row.average for run in finished for row in run.result.rows))
    unlike = {}
    for metric in metrics:
        texts = sorted({run.result.measured_with.get(metric, "nothing stated") for run in finished})
        if len(texts) > 1:
            unlike[metric] = texts
    return Comparison(tasks[0], groups, metrics, averages, unlike)


def _deciding(run: Run) -> dict[str, Any]:
    """What decides the run's result but for the seed, as the run_id has it."""
    return {key: value for key, value in without_defaults(Config, run.config).items() if key not in APART}


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
