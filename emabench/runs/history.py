"""`history.jsonl`: what happened along a run, one JSON object a line.

Training lines carry `step` (optimiser steps done), `wall` (seconds of training so far), the mean losses since
the line before, `lr`. Measurements carry `step` and `eval`: {average: {metric: number or null}}.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from emabench.runs.files import open_regular, read_bytes, write_text


class History:
    """Appends lines; opened at a step, it drops the lines of later steps."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = [line for line in lines(path) if line["step"] <= step] if path.exists() else []
        self.measured = {line["step"] for line in kept if "eval" in line}
        self.trained = sum("eval" not in line for line in kept)  # lines that are no measurement
        write_text(path, "".join(_line(line) for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def add(self, **values: Any) -> None:
        """One line, on its way to the disk at once."""
        self._file.write(_line(values))
        self._file.flush()
        self.trained += "eval" not in values

    def sync(self) -> None:
        """Make all lines durable: called before a checkpoint that counts on them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class NoHistory(History):
    """For the processes of a run that do not write."""

    def __init__(self) -> None:
        self.measured: set[int] = set()
        self.trained = 0

    def add(self, **values: Any) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a history, without any that a crash cut short or that is damaged."""
    with open_regular(path) as file:
        for text in file:
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):  # no JSON, or a number of too many digits
                continue
            if _is_sound(line):
                yield line


def seal(path: Path) -> dict[str, Any]:
    """What a result records of its history: the number of lines and a checksum, for `damage`."""
    data = read_bytes(path)
    return {"lines": data.count(b"\n"), "sha256": hashlib.sha256(data).hexdigest()[:16]}


def damage(path: Path, sealed: Any) -> str:
    """In words, how a history differs from what its result recorded of it; "" where it does not, or nothing was."""
    if not isinstance(sealed, dict) or type(sealed.get("lines")) is not int:
        return ""
    try:
        if seal(path) == sealed:
            return ""
        lost = sealed["lines"] - sum(1 for _ in lines(path))
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    if lost > 0:
        return f"{path.name} has lost {lost} of its {sealed['lines']} lines"
    return f"{path.name} has changed since the run finished"


def progress(path: Path, steps: int) -> tuple[int, float | None]:
    """Steps done of a run of so many, and at their pace the seconds of training left (None where nothing tells)."""
    try:
        trained = [line for line in lines(path) if line.get("wall") is not None]
    except OSError:
        return 0, None
    if not trained or not trained[-1]["step"]:
        return 0, None
    step, wall = trained[-1]["step"], trained[-1]["wall"]
    return step, wall / step * (steps - step)


def _is_sound(line: Any) -> bool:
    """`step` is a count, `eval` holds measurements, everything else is a number or null."""
    if not isinstance(line, dict) or type(line.get("step")) is not int or not 0 <= line["step"] < 2**53:
        return False
    measured = line.get("eval", {})
    if not isinstance(measured, dict) or not all(isinstance(row, dict) for row in measured.values()):
        return False
    values = [value for name, value in line.items() if name != "eval"]
    values += [value for row in measured.values() for value in row.values()]
    return all(value is None or _is_number(value) for value in values)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(_finite(values), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN: what is not finite is null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
