"""all that was measured, as a page"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from emabench import plugins
from emabench.commands.table import plan
from emabench.compose import configuration
from emabench.config import SCALES
from emabench.errors import DONE, UserError
from emabench.tables import spec
from emabench.tables.gather import Run, Runs, all_runs
from emabench.tables.judge import Judged, judge

MOST_SEEDS = 1000


def main(words: Sequence[str]) -> int:
    """`emabench report [overrides]`: every table with its verdicts, and the runs that belong to none."""
    page, runs, unreadable = write(words)
    print(f"{runs} runs")
    for text in unreadable:
        print(f"not read: {text}")
    print(f"page    {page}")
    return DONE


def write(words: Sequence[str]) -> tuple[Path, int, list[str]]:
    """Write the page; returns where it is, how many runs it is made from, and what could not be read."""
    results_dir = Path(configuration(words).results_dir)
    if not results_dir.is_dir():
        raise UserError(f"results_dir={results_dir}: is not there; nothing was measured in it")
    runs, unreadable = all_runs(results_dir)
    there = {run.path: run for run in runs if run.path}
    judged = []
    for table in spec.all_tables():
        try:
            judged += _judged(table, there, words)
        except UserError as error:  # of a table from outside the package, or its task; all else is reported
            if plugins.find("conf/table")[table.name].source.built_in:
                raise
            unreadable.append(f"table {table.name}: {error}")
    of_tables = {run.path for each in judged for run in each.all_runs}
    others = [run for run in runs if run.path not in of_tables]

    from emabench.report import html

    return html.write_report(judged, results_dir, others, unreadable), len(runs), unreadable


def _judged(table: spec.Table, there: Mapping[Path, Run], words: Sequence[str]) -> list[Judged]:
    """The table at every scale that something was measured at; at the small one where nothing was."""
    all_scales = []
    for scale in SCALES:
        if not any((run.result.task, run.result.scale) == (table.task, scale) for run in there.values()):
            continue  # composing the arms' configurations, to ask for runs that cannot be there, is what takes long
        runs = _runs(table, scale, there, [word for word in words if not word.startswith("scale=")])
        if any(run for by_seed in runs.values() for run in by_seed.values()):
            all_scales.append(judge(table, scale, runs, words))
    seeds = range(table.seed_count("small"))
    return all_scales or [judge(table, "small", {arm: dict.fromkeys(seeds) for arm in table.arms})]


def _runs(table: spec.Table, scale: str, there: Mapping[Path, Run], words: Sequence[str]) -> Runs:
    """The runs of the table's own seeds, and of as many more as were run."""
    planned = plan(table, scale, range(MOST_SEEDS), words)
    count = table.seed_count(scale)
    while count < MOST_SEEDS and any(by_seed[count].directory() in there for by_seed in planned.values()):
        count += 1
    return {
        arm: {seed: there.get(by_seed[seed].directory()) for seed in range(count)}
        for arm, by_seed in planned.items()
    }
