"""What it takes to gather and report a thousand runs.

The runs are made up, their files are as real ones: configurations of the tables' own arms, further seeds of each
and runs of no table, histories with losses and measurements, a row for every average.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from emabench.compose import configuration
from emabench.config import Config
from emabench.runs.directory import RunDirectory
from emabench.runs.history import History
from emabench.runs.result import RAW, Result, Row, to_json
from emabench.tables import spec


def main(argv: Sequence[str]) -> None:
    """`emabench bench report [--runs N] [--out FILE]`"""
    parser = argparse.ArgumentParser(prog="emabench bench report", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        for config in configurations(Path(folder), args.runs):
            make_up(config)
        began = time.perf_counter()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "emabench", "report", f"results_dir={folder}"]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        figures = {
            "runs": int(output.split()[0]),
            "seconds": time.perf_counter() - began,
            "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            "page_mb": (Path(folder) / "report" / "index.html").stat().st_size / 1e6,
        }
    print("\n".join(f"{name:<12}{value:>8.4g}" for name, value in figures.items()))
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n")


def configurations(results_dir: Path, runs: int) -> list[Config]:
    """So many runs, half of them of all tables, half of none, seed by seed."""
    common = [f"results_dir={results_dir}", "device=cpu"]
    arms = [
        configuration([*table.words(arm, "small"), *common])
        for table in spec.all_tables()
        for arm in table.arms
    ]
    configs: dict[Path, Config] = {}  # tables share some of their runs
    for seed in count():
        others = [arms[0].model_copy(update={"steps": arms[0].steps + 1 + n}) for n in range(len(arms))]
        for config in (*arms, *others):
            each = config.model_copy(update={"seed": seed})
            configs[each.directory()] = each
            if len(configs) == runs:
                return list(configs.values())
    raise AssertionError("unreachable")


def make_up(config: Config) -> None:
    """The files of a finished run of this configuration, with numbers drawn from its seed."""
    draw = random.Random(config.run_id())
    table = _table(config.task_name)
    metrics = {name: about.better for name, about in table.metrics.items()}
    directory = RunDirectory(config.directory())
    directory.prepare(config)
    profiles = config.profiles()
    history = History(directory.history, 0)
    for step in range(config.steps // 100, config.steps + 1, max(1, config.steps // 100)):
        history.add(step=step, wall=step / 100, loss=math.exp(-step / config.steps) + draw.random(), lr=0.1)
    for step in range(config.steps // 10, config.steps + 1, max(1, config.steps // 10)):
        at = {metric: 10 + draw.random() for metric in metrics}
        history.add(step=step, eval=dict.fromkeys((RAW, *profiles), at))
    history.close()
    rows = [Row(RAW, {}, {metric: 10 + draw.random() for metric in metrics})]
    for name, profile in profiles.items():
        try:
            about = profile.describe(config.steps)
        except ValueError:
            about = {}
        values = {metric: 9 + draw.random() for metric in metrics}
        rows.append(Row(name, profile.to_dict() | {"describe": about}, values))
    result = Result(
        run_id=config.run_id(),
        task=config.task_name,
        scale=config.scale,
        seed=config.seed,
        steps=config.steps,
        status="finished",
        rows=tuple(rows),
        metrics=metrics,
        measured_with={},
        references={},
        timing={"train_s": 1.0},
        environment={"device": "cpu", "commit": "0" * 12},
    )
    directory.result_file.write_text(to_json(result))


@functools.cache
def _table(task: str) -> spec.Table:
    return next(table for table in spec.all_tables() if table.task == task)
