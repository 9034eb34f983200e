"""`result.json`: what a run measured, one row an average."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from emabench.errors import RunFailed
from emabench.runs.files import read_bytes

SCHEMA = 1
Status = Literal["finished", "diverged", "failed"]
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
RAW = "raw"  # the weights themselves, always the first row
LARGEST = 1e100  # what is beyond is no measurement, and its square no number
Number = Annotated[float, Field(gt=-LARGEST, lt=LARGEST)]


# Control characters but tab and newline, as they are or as JSON escapes them; an escaped backslash is none.
CONTROL = re.compile(
    r"(?P<backslash>\\\\)|\\u00(?:0[0-8bcefBCEF]|1[0-9a-fA-F]|7[fF]|[89][0-9a-fA-F])|\\[bfr]|[\x7f-\x9f]"
)


class DamagedResult(RunFailed):
    """A result file that cannot be read as one; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Row:
    """One set of weights of a run, measured. A metric without a finite value is None, with its reason."""

    __pydantic_config__ = STRICT

    average: str
    profile: Mapping[str, Any]
    metrics: Mapping[str, Number | None]
    reasons: Mapping[str, str] = field(default_factory=dict)  # by metric, why it is None


@dataclass(frozen=True)
class Result:
    """A finished run. `metrics` says which way each metric is better ("lower", "higher"), the main one first;
    `measured_with` what it was measured with where values are comparable only if that is the same;
    `references` floors and ceilings of the metrics on this task's data."""

    __pydantic_config__ = STRICT

    run_id: str
    task: str
    scale: str
    seed: int
    steps: Annotated[int, Field(ge=1, lt=2**53)]
    status: Status
    rows: tuple[Row, ...]
    metrics: Mapping[str, str]
    measured_with: Mapping[str, str]
    references: Mapping[str, Number]
    timing: Mapping[str, float]  # seconds: train_s, averaging_s, evaluate_s
    environment: Mapping[str, Any]  # versions, device, git commit, command
    reason: str | None = None  # why it did not finish
    units: Mapping[str, str] = field(default_factory=dict)  # of metrics that have one; older runs do not say
    schema: int = SCHEMA

    def row(self, average: str) -> Row | None:
        """The row of one average, None where the run carried none of that name."""
        return next((row for row in self.rows if row.average == average), None)


def measured(average: str, profile: Mapping[str, Any], values: Mapping[str, float]) -> Row:
    """A row of measured values; what is not finite becomes None with its reason."""
    bad = {name: f"measured as {value}" for name, value in values.items() if not abs(value) < LARGEST}
    return Row(average, profile, {name: None if name in bad else float(v) for name, v in values.items()}, bad)


def to_json(result: Result) -> str:
    """The text of `result.json`, strict JSON (no NaN)."""
    return json.dumps(asdict(result), indent=1, allow_nan=False) + "\n"


def read_result(path: Path) -> Result:
    """Read one `result.json`. Raises DamagedResult when it is not one, FileNotFoundError when there is none."""
    try:
        text = read_bytes(path).decode(errors="replace")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedResult(f"{path}: cannot be read ({error.strerror})") from error
    return parse_result(text, str(path))


def parse_result(text: str, source: str) -> Result:
    """A result from its JSON text; `source` names where it is from. Raises DamagedResult when it is not one."""
    # They would move a terminal's cursor, or worse.
    text = CONTROL.sub(lambda match: match["backslash"] or "\\ufffd", text)
    try:
        schema = json.loads(text)["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedResult(f"{source}: not a result file ({type(error).__name__}: {error})") from error
    if schema != SCHEMA:
        raise DamagedResult(f"{source}: schema {schema!r}, this version reads {SCHEMA}")
    try:
        return _RESULT.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DamagedResult(f"{source}: not a result file ({where}: {first['msg']})") from error


def row_to_json(row: Row) -> str:
    """The text of one row by itself, strict JSON."""
    return json.dumps(asdict(row), allow_nan=False) + "\n"


def parse_row(text: str) -> Row:
    """A row from its own JSON text. Raises pydantic's ValidationError when it is not one."""
    return _ROW.validate_json(text)


def read_row(path: Path) -> Row | None:
    """One row by itself; None where the file holds none."""
    try:
        return _ROW.validate_json(read_bytes(path))
    except (OSError, ValidationError):
        return None


_RESULT = TypeAdapter(Result)
_ROW = TypeAdapter(Row)
