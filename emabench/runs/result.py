"""`result.json`: what a run found, one row an average."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from emabench.errors import RunFailed

SCHEMA = 1
Status = Literal["finished", "diverged", "failed"]
STATUSES = ("finished", "diverged", "failed")
RAW = "raw"  # the weights themselves, always the first row


class DamagedResult(RunFailed):
    """A result file that cannot be read as one; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Row:
    """One set of weights of a run, measured. A metric without a finite value is None, with its reason."""

    average: str
    profile: Mapping[str, Any]
    metrics: Mapping[str, float | None]
    reasons: Mapping[str, str] = field(default_factory=dict)  # by metric, why it is None


@dataclass(frozen=True)
class Result:
    """A finished run. `metrics` says which way each metric is better ("lower", "higher"), the main one first;
    `measured_with` what it was measured with where values are comparable only if that is the same;
    `references` floors and ceilings of the metrics on this task's data."""

    run_id: str
    task: str
    scale: str
    seed: int
    steps: int
    status: Status
    rows: tuple[Row, ...]
    metrics: Mapping[str, str]
    measured_with: Mapping[str, str]
    references: Mapping[str, float]
    timing: Mapping[str, float]  # seconds: train_s, averaging_s, evaluate_s
    environment: Mapping[str, Any]  # versions, device, git commit, command
    reason: str | None = None  # why it did not finish
    schema: int = SCHEMA

    def row(self, average: str) -> Row | None:
        """The row of one average, None where the run carried none of that name."""
        return next((row for row in self.rows if row.average == average), None)


def measured(average: str, profile: Mapping[str, Any], values: Mapping[str, float]) -> Row:
    """A row of measured values; what is not finite becomes None with its reason."""
    bad = {name: f"measured as {value}" for name, value in values.items() if not math.isfinite(value)}
    return Row(average, profile, {name: None if name in bad else float(v) for name, v in values.items()}, bad)


def to_json(result: Result) -> str:
    """The text of `result.json`, strict JSON (no NaN)."""
    return json.dumps(asdict(result), indent=1, allow_nan=False) + "\n"


def read_result(path: Path) -> Result:
    """Read one `result.json`. Raises DamagedResult when it is not one, FileNotFoundError when there is none."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        data = json.loads(text)
        if data["schema"] != SCHEMA:
            raise DamagedResult(f"{path}: schema {data['schema']!r}, this version reads {SCHEMA}")
        if data["status"] not in STATUSES:
            raise DamagedResult(f"{path}: status {data['status']!r} is none of {', '.join(STATUSES)}")
        rows = tuple(Row(**row) for row in data.pop("rows"))
        for row in rows:
            for name, value in row.metrics.items():
                if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
                    raise DamagedResult(f"{path}: {row.average}.{name} is {value!r}, not a number")
        return Result(rows=rows, **data)
    except DamagedResult:
        raise
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DamagedResult(f"{path}: not a result file ({type(error).__name__}: {error})") from error
