"""A table's runs in one JSON file, complete enough to be judged again: results, and measurements along training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emabench.errors import UserError
from emabench.runs.files import read_bytes
from emabench.runs.result import DamagedResult, parse_result
from emabench.tables.gather import Run, Runs
from emabench.tables.judge import Judged
from emabench.tables.spec import Table


def to_json(judged: Judged, command: str) -> str:
    """The runs with their arms, of histories what was measured of the table's metrics and averages.

    Of a history with gaps nothing is taken: who reads the file could not tell."""
    runs = []
    for arm, by_seed in judged.runs.items():
        averages = {row.average for row in judged.rows.values() if row.spec.arm == arm}
        for run in by_seed.values():
            if run:
                runs.append(
                    {
                        **asdict(run.result),
                        "arm": arm,
                        **({"address": run.address} if run.address else {}),
                        "evaluations": {
                            average: {
                                metric: [[step, float(f"{value:.7g}")] for step, value in track]
                                for metric in judged.table.metrics
                                if not run.history_problem and len(track := run.measured(average, metric)) > 1
                            }
                            for average in sorted(averages)
                        },
                    }
                )
    head = {"command": command, "scale": judged.scale}
    lines = ",\n".join("  " + json.dumps(run, allow_nan=False) for run in runs)
    return f'{json.dumps(head)[:-1]}, "runs": [\n{lines}\n]}}\n'


def read(path: Path, table: Table) -> tuple[str, Runs]:
    """The scale and the runs of a file that `to_json` wrote. Raises UserError for one that is not of this table."""
    try:
        data = json.loads(read_bytes(path))
        listed: list[dict[str, Any]] = data["runs"]
    except OSError as error:
        raise UserError(f"--from {path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--from {path}: is not a table's JSON file ({error})") from error
    runs: dict[str, dict[int, Run | None]] = {arm: {} for arm in table.arms}
    scale = data.get("scale", "small")
    for entry in listed:
        arm, evaluations = entry.pop("arm", None), entry.pop("evaluations", {})
        address = str(entry.pop("address", ""))
        if arm not in runs:
            raise UserError(f"--from {path}: arm {arm!r} is none of table {table.name}; {', '.join(runs)}")
        try:
            result = parse_result(json.dumps(entry), str(path))
        except DamagedResult as error:
            raise UserError(f"--from {error}") from error
        if (result.task, result.scale) != (table.task, scale):
            raise UserError(
                f"--from {path}: run {result.run_id} is of {result.task} at scale {result.scale}, not of {table.task}"
            )
        runs[arm][result.seed] = Run(result, evaluations=_tracks(evaluations), known_address=address)
    return scale, runs


def _tracks(evaluations: Mapping[str, Any]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    return {
        average: {
            metric: [(int(step), float(value)) for step, value in track] for metric, track in by.items()
        }
        for average, by in evaluations.items()
    }
