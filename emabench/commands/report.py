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
    judged = [each for name in spec.names() for each in _judged(spec.load(name), results_dir, words)]
    runs, unreadable = all_runs(results_dir)
    of_tables = {run.path for each in judged for run in each.all_runs}
    others = [run for run in runs if run.path not in of_tables]

    from emabench.report import html

    return html.write_report(judged, results_dir, others, unreadable), len(runs), unreadable


def _judged(table: spec.Table, results_dir: Path, words: Sequence[str]) -> list[Judged]:
    """The table at every scale that something was measured at; at the small one where nothing was."""
    all_scales = []
    for scale in SCALES:
        if scale != "small" and not any((results_dir / table.task).glob(f"{scale}-*")):
            continue
        runs = _runs(table, scale, [word for word in words if not word.startswith("scale=")])
        if any(run for by_seed in runs.values() for run in by_seed.values()):
            all_scales.append(judge(table, scale, runs, words))
        elif scale == "small":
            unmeasured = judge(table, scale, runs)
    return all_scales or [unmeasured]


def _runs(table: spec.Table, scale: str, words: Sequence[str]) -> Runs:
    """The runs of the table's own seeds, and of as many more as were run."""
    planned = plan(table, scale, range(MOST_SEEDS), words)
    count = table.seed_count(scale)
    while count < MOST_SEEDS and any(found(by_seed[count]) for by_seed in planned.values()):
        count += 1
    return gathered({arm: dict(list(by_seed.items())[:count]) for arm, by_seed in planned.items()})
