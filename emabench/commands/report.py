"""all that was measured, as a page"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emabench.commands.table import found, gathered, plan
from emabench.compose import configuration
from emabench.config import SCALES
from emabench.errors import DONE
from emabench.tables import spec
from emabench.tables.gather import Runs, all_runs
from emabench.tables.judge import Judged, judge


def main(words: Sequence[str]) -> int:
    """`emabench report [overrides]`: every table with its verdicts, and the runs that belong to none."""
    results_dir = Path(configuration(words).results_dir)
    judged = [each for name in spec.names() for each in _judged(spec.load(name), words)]
    runs, unreadable = all_runs(results_dir)
    of_tables = {run.path for each in judged for run in each.all_runs}
    others = [run for run in runs if run.path not in of_tables]

    from emabench.report import html

    page = html.write_report(judged, results_dir, others, unreadable)
    print(f"{len(runs)} runs of {results_dir}, {len(of_tables)} of them in tables")
    for text in unreadable:
        print(f"not read: {text}")
    print(f"page    {page}")
    return DONE


def _judged(table: spec.Table, words: Sequence[str]) -> list[Judged]:
    """The table at every scale that something was measured at; at the small one where nothing was."""
    all_scales = []
    for scale in SCALES:
        runs = _runs(table, scale, [word for word in words if not word.startswith("scale=")])
        if any(run for by_seed in runs.values() for run in by_seed.values()):
            all_scales.append(judge(table, scale, runs, words))
        elif scale == "small":
            unmeasured = judge(table, scale, runs)
    return all_scales or [unmeasured]


def _runs(table: spec.Table, scale: str, words: Sequence[str]) -> Runs:
    """The runs of the table's own seeds, and of as many more as were run."""
    seeds = table.seed_count(scale)
    while any(found(by[seeds]) for by in plan(table, scale, [seeds], words).values()):
        seeds += 1
    return gathered(plan(table, scale, range(seeds), words))
