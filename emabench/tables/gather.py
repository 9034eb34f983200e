"""Runs as they lie on disk: the result, its configuration, its history, its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from emabench.averaging.profiles import window_of
from emabench.errors import RunFailed, UserError
from emabench.runs import history
from emabench.runs.directory import RunDirectory, run_directories
from emabench.runs.files import read_yaml
from emabench.runs.result import LARGEST, RAW, DamagedResult, Result, read_result

Runs = Mapping[str, Mapping[int, "Run | None"]]
"""The runs of a table: by arm, by seed; None where there is none yet."""


@dataclass(frozen=True)
class Run:
    """A run with a result. `path` is its directory; None for one that is only in memory.

    `evaluations`: what was measured along training, by average and metric, of a run that has no directory.
    `known_address`: where W&B shows it, likewise.
    """

    result: Result
    path: Path | None = None
    evaluations: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]] = field(default_factory=dict)
    known_address: str = ""

    @cached_property
    def address(self) -> str:
        """Where W&B shows it; empty where none is known."""
        file = self.path / "wandb" / "address.txt" if self.path else None
        try:
            return file.read_text(encoding="utf-8").strip() if file and file.is_file() else self.known_address
        except (OSError, ValueError):
            return self.known_address

    @property
    def finished(self) -> bool:
        return self.result.status == "finished"

    def value(self, average: str, metric: str) -> float | None:
        """A measured number; None for a run that did not finish: a diverged run is never a number."""
        row = self.result.row(average) if self.finished else None
        return row.metrics.get(metric) if row else None

    def window(self, average: str) -> float | None:
        """The averaging window in steps, `averaging.profiles.window_of`; 1 for raw, None if unknown."""
        return 1.0 if average == RAW else window_of(self.describe(average))

    def describe(self, average: str) -> Mapping[str, float]:
        """What the profile of an average amounts to (half-life, weight left on the start, …), as far as known."""
        row = self.result.row(average)
        about = row.profile.get("describe") if row else None
        if not isinstance(about, Mapping):
            return {}
        return {
            name: value
            for name, value in about.items()
            if type(value) in (int, float) and abs(value) < LARGEST
        }

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration; empty where there is none to be read."""
        try:
            config = read_yaml(self.path / "config.yaml") if self.path else None
        except (OSError, ValueError):
            return {}
        return config if isinstance(config, dict) else {}

    @cached_property
    def _lines(self) -> list[dict[str, Any]]:
        file = self.path / "history.jsonl" if self.path else None
        try:
            return list(history.lines(file)) if file and file.exists() else []
        except OSError:
            return []

    @cached_property
    def history_problem(self) -> str:
        """Why what was measured along the run is not to be relied on; "" where it is."""
        environment = self.result.environment
        lost = environment.get("history_lines_lost")
        if type(lost) is int and lost > 0:
            return f"history.jsonl had lost {lost} lines when the run was resumed"
        return history.damage(self.path / "history.jsonl", environment.get("history")) if self.path else ""

    @property
    def irregularities(self) -> list[str]:
        """What makes the run not quite the one that was never stopped, and what its files have lost, in words."""
        notes = []
        if self.history_problem:
            notes.append(f"{self.history_problem}; claims and curves along training leave it out")
        changes = self.result.environment.get("changed_on_resume")
        if isinstance(changes, list) and changes:
            listed = "; ".join(map(str, changes))
            notes.append(f"computed otherwise after a resume ({listed}); last digits may differ")
        return notes

    def losses(self) -> list[tuple[int, float]]:
        """(step, training loss) along the run."""
        return [(line["step"], line["loss"]) for line in self._lines if line.get("loss") is not None]

    def measured(self, average: str, metric: str) -> list[tuple[int, float]]:
        """(step, value) of every measurement of one average along the run, the last one included."""
        track = dict(self.evaluations.get(average, {}).get(metric, ()))
        for line in self._lines:
            value = line.get("eval", {}).get(average, {}).get(metric)
            if value is not None:
                track[line["step"]] = float(value)
        last = self.value(average, metric)
        if last is not None:
            track[self.result.steps] = last
        return sorted(track.items())

    def picture(self, average: str) -> Path | None:
        """Samples of an average, for tasks that make pictures."""
        file = self.path / "artifacts" / average / "samples.png" if self.path else None
        return file if file and file.is_file() else None


def read_run(path: Path) -> Run | None:
    """The run in a directory (or whose `result.json` is given); None while it has no result.

    Raises DamagedResult, which names the file.
    """
    path = path.parent if path.name == "result.json" else path
    file = RunDirectory(path).result_file
    return Run(read_result(file), path) if file.exists() else None


def read_run_of(path: Path) -> Run | None:
    """The same for `<results_dir>/<task>/<run_id>`; a result of another run is a damaged one."""
    run = read_run(path)
    if run is None:
        return None
    result = run.result
    if (result.task, result.run_id) != (path.parent.name, path.name):
        raise DamagedResult(
            f"{path / 'result.json'}: is of run {result.task}/{result.run_id}, not of this one"
        )
    if not result.run_id.startswith(f"{result.scale}-seed{result.seed}-"):
        raise DamagedResult(
            f"{path / 'result.json'}: scale {result.scale} and seed {result.seed} are not this run's"
        )
    return run


def run_at(path: Path) -> Run:
    """The run that a user names. Raises UserError where there is none, RunFailed where it is damaged."""
    try:
        run = read_run(path)
    except DamagedResult as error:
        raise RunFailed(f"{error}; run it again with rerun=true") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if run is None:
        state = "has no result.json yet" if path.is_dir() else "does not exist"
        raise UserError(f"{path}: {state}; name a run's directory, <results_dir>/<task>/<run_id>")
    return run


def all_runs(results_dir: Path) -> tuple[list[Run], list[str]]:
    """Every run with a result below a results directory, and what could not be read, in words."""
    runs, unreadable = [], []
    for path in run_directories(results_dir):
        try:
            run = read_run_of(path)
        except (DamagedResult, OSError) as error:
            unreadable.append(str(error))
            continue
        if run:
            runs.append(run)
    return runs, unreadable
