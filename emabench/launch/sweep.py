"""`emabench -m …`: every combination of the values given, in Hydra's grammar of sweeps, each a run of its own.

All are composed and checked before the first one starts, and go the way that a table's runs go: on this machine, or
to SLURM. A finished run is not run again, so an interrupted sweep goes on with the same command; one that fails does
not take the others down.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from emabench import compose
from emabench.config import Config, checked
from emabench.errors import DONE, FAILED, UserError
from emabench.launch import many
from emabench.launch.plan import found
from emabench.runs.result import RAW

USAGE = f"emabench -m key=v1,v2 … {many.USAGE}"


def main(words: Sequence[str]) -> int:
    """Run, submit or look at every combination, and print a line on each."""
    options, overrides = many.read(words, USAGE)
    runs = named(compose.sweep(overrides))
    if not many.carry_out("sweep", runs, options, ["emabench", "-m", *words]):
        return DONE
    complete = _show(runs)
    return DONE if complete or options.action else FAILED


def named(jobs: Sequence[Sequence[str]]) -> dict[str, Config]:
    """The run of each job's words, by those of them that tell it from the others. Raises UserError."""
    varying = [i for i in range(len(jobs[0])) if len({job[i] for job in jobs}) > 1]
    runs = {
        " ".join(job[i] for i in varying) or config.task_name: config
        for job, config in zip(jobs, _composed(jobs), strict=True)
    }
    first: dict[object, str] = {}
    for name, config in runs.items():
        other = first.setdefault(config.directory(), name)
        if other != name:
            raise UserError(
                f"{name}: is the same run as {other}, for what differs decides no result; sweep over what does"
            )
    return runs


def _composed(jobs: Sequence[Sequence[str]]) -> Iterator[Config]:
    """Each job's configuration. A seed is put into the one of the other words: composing anew takes 50 ms."""
    compose_once = functools.cache(compose.configuration)
    for job in jobs:
        config = compose_once(tuple(word for word in job if not word.startswith("seed=")))
        seeds = [override.value() for override in compose.parse(job) if override.key_or_group == "seed"]
        yield checked(Config, config.model_dump() | {"seed": seeds[-1]}) if seeds else config


def _show(runs: Mapping[str, Config]) -> bool:
    """A line on each run, with the best of its averages; returns whether all are finished."""
    results = [there.result if (there := found(config)) else None for config in runs.values()]
    metrics = [next(iter(result.metrics), "") if result else "" for result in results]
    titles = list(dict.fromkeys(filter(None, metrics)))
    title = titles[0] if len(titles) == 1 else None
    shown = Table(box=None, padding=(0, 2, 0, 0), title=title, title_justify="left", title_style="bold")
    shown.add_column("job", overflow="fold")
    for heading in ("status", *([] if title else ["metric"]), "raw", "average", "", "change"):
        right = heading in ("raw", "average", "change")
        shown.add_column(heading, no_wrap=True, justify="right" if right else "left")
    for name, result, metric in zip(runs, results, metrics, strict=True):
        row = [name, result.status if result else "not run", *([] if title else [metric])]
        measured = {r.average: r.metrics.get(metric) for r in result.rows} if result else {}
        values = {average: value for average, value in measured.items() if value is not None}
        raw = values.pop(RAW, None)
        row.append("–" if raw is None else f"{raw:.4g}")
        if result and values:
            best = (max if result.metrics[metric] == "higher" else min)(values, key=values.__getitem__)
            change = 100 * (values[best] - raw) / abs(raw) if raw else math.nan
            row += [f"{values[best]:.4g}", best, f"{change:+.{0 if abs(change) >= 10 else 2}f} %"]
        else:
            row += ["–", "", ""]
        shown.add_row(*row)
    Console().print(shown)
    return all(result is not None and result.status == "finished" for result in results)
