"""`emabench -m …`: every combination of the values given, in Hydra's grammar of sweeps, each a run of its own.

`sweep=NAME` gives the values of a named sweep (`sweep_file.py`). All are composed and checked before the first one
starts, and take the same way as a table's runs: on this machine, or to SLURM. A finished run is not run again, so an
interrupted sweep is resumed by the same command; one that fails does not take the others down.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from emabench import compose
from emabench.config import Config, checked
from emabench.errors import DONE, FAILED, UserError
from emabench.launch import many, sweep_file
from emabench.launch.plan import existing_run
from emabench.launch.sweep_file import Job
from emabench.runs.result import RAW, Result

USAGE = f"emabench -m [sweep=NAME] key=v1,v2 … {many.USAGE}"


def main(words: Sequence[str]) -> tuple[int, Path | None]:
    """Run, submit or look at every combination, and print a line on each.

    Returns the exit status, and the results directory where there is something new for its page.
    """
    options, overrides = many.read(words, USAGE)
    sweeps, overrides = sweep_file.split(overrides)
    compose_once = functools.cache(compose.configuration)
    if sweeps:
        jobs = sweep_file.jobs(sweeps, overrides, compose_once)
    else:
        jobs = [Job(tuple(job), tuple(job)) for job in compose.sweep(overrides)]
    runs = named(jobs, compose_once)
    name = sweep_file.group_of(sweeps)
    if not many.execute(name, runs, options, ["emabench", "-m", *words]):
        return DONE, None
    results = {title: run.result if (run := existing_run(config)) else None for title, config in runs.items()}
    if any(sweep.one_run for sweep in sweeps):
        _show_averages(results)
    else:
        _show(results)
    complete = all(result is not None and result.status == "finished" for result in results.values())
    return DONE if complete or options.action else FAILED, Path(next(iter(runs.values())).results_dir)


def named(jobs: Sequence[Job], configuration: Callable[..., Config]) -> dict[str, Config]:
    """The run of each job, by those words of its title that tell it from the others. Raises UserError.

    A seed is put into the configuration of the other words: composing one takes 50 ms.
    """
    titles = [job.title for job in jobs]
    varying = [i for i in range(len(titles[0])) if len({title[i] for title in titles}) > 1]
    runs: dict[str, Config] = {}
    for job in jobs:
        config = configuration(tuple(word for word in job.words if not word.startswith("seed=")))
        seeds = [override.value() for override in compose.parse(job.words) if override.key_or_group == "seed"]
        if seeds:
            config = checked(Config, config.model_dump() | {"seed": seeds[-1]})
        runs[" ".join(job.title[i] for i in varying) or config.task_name] = config
    first: dict[object, str] = {}
    for name, config in runs.items():
        other = first.setdefault(config.directory(), name)
        if other != name:
            raise UserError(
                f"{name}: is the same run as {other}, for what differs decides no result; sweep over what does"
            )
    return runs


def _show(results: Mapping[str, Result | None]) -> None:
    """A line on each run, with the best of its averages."""
    shown, title = _table(results, ("raw", "average", "", "change"))
    for name, result in results.items():
        metric, values = _measured(result)
        row = [name, result.status if result else "not run", *([] if title else [metric])]
        raw = values.pop(RAW, None)
        row.append("–" if raw is None else f"{raw:.4g}")
        if result and values:
            best = (max if result.metrics[metric] == "higher" else min)(values, key=values.__getitem__)
            row += [f"{values[best]:.4g}", best, _change(values[best], raw)]
        else:
            row += ["–", "", ""]
        shown.add_row(*row)
    Console(markup=False).print(shown)


def _show_averages(results: Mapping[str, Result | None]) -> None:
    """A line on each set of weights of each run: a sweep whose points are averages of one run."""
    shown, title = _table(results, ("average", "value", "change"))
    for name, result in results.items():
        metric, values = _measured(result)
        start = [name, result.status if result else "not run", *([] if title else [metric])]
        for average, value in values.items():
            change = "" if average == RAW else _change(value, values.get(RAW))
            shown.add_row(*start, average, f"{value:.4g}", change)
            start = [""] * len(start)
        if not values:
            shown.add_row(*start, "–", "", "")
    Console(markup=False).print(shown)


def _table(results: Mapping[str, Result | None], columns: Sequence[str]) -> tuple[Table, str | None]:
    """An empty table; its title is the metric where all runs have the same main one."""
    titles = list(dict.fromkeys(filter(None, (_measured(result)[0] for result in results.values()))))
    title = titles[0] if len(titles) == 1 else None
    shown = Table(box=None, padding=(0, 2, 0, 0), title=title, title_justify="left", title_style="bold")
    shown.add_column("job", overflow="fold")
    for heading in ("status", *([] if title else ["metric"]), *columns):
        numbers = ("raw", "change", "value") if "value" in columns else ("raw", "average", "change")
        shown.add_column(heading, no_wrap=True, justify="right" if heading in numbers else "left")
    return shown, title


def _measured(result: Result | None) -> tuple[str, dict[str, float]]:
    """The main metric, and its value for each set of weights that has one."""
    if result is None:
        return "", {}
    metric = next(iter(result.metrics), "")
    values = {row.average: row.metrics.get(metric) for row in result.rows}
    return metric, {average: value for average, value in values.items() if value is not None}


def _change(value: float, raw: float | None) -> str:
    change = 100 * (value - raw) / abs(raw) if raw else math.nan
    return f"{change:+.{0 if abs(change) >= 10 else 2}f} %"
