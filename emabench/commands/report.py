"""write a page over everything that was measured"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from emabench import plugins
from emabench.commands.table import judged_of, plan, pooled
from emabench.compose import configuration
from emabench.config import SCALES, Config
from emabench.errors import DONE, UserError
from emabench.report.files import folder_for, page_of
from emabench.runs.directory import RunDirectory
from emabench.runs.result import DamagedResult
from emabench.tables import spec
from emabench.tables.gather import Run, Runs, all_runs, read_run_of
from emabench.tables.judge import Judged, judge, survivors

MOST_SEEDS = 1000


def main(words: Sequence[str]) -> int:
    """`emabench report [out=DIR] [overrides]`: every table with its verdicts, and the runs that belong to none."""
    page, runs, unreadable = write(words)
    print(f"{runs} run{'' if runs == 1 else 's'}")
    for text in unreadable:
        print(f"not read: {text}")
    print(f"page    {page}")
    return DONE


def write(words: Sequence[str]) -> tuple[Path, int, list[str]]:
    """Write the page; returns where it is, how many runs it is made from, and what could not be read."""
    out = next((word[4:] for word in words if word.startswith("out=")), "")
    words = [word for word in words if not word.startswith("out=")]
    words, pool = pooled(words)
    results_dir = Path(configuration(words).results_dir)
    if not results_dir.is_dir():
        raise UserError(f"results_dir={results_dir}: does not exist; no run was written to it")
    runs, unreadable = all_runs(results_dir)
    by_path = {run.path: run for run in runs if run.path}
    judged = []
    for table in spec.all_tables():
        try:
            judged += _judged(table, by_path, words, pool)
        except UserError as error:  # of a table from outside the package, or its task; all else is reported
            if plugins.find("conf/table")[table.name].source.built_in:
                raise
            unreadable.append(f"table {table.name}: {error}")
    of_tables = {run.path for each in judged for run in each.all_runs}
    others = [run for run in runs if run.path not in of_tables]

    from emabench.report import html

    pages = html.write_report(survivors(judged), folder_for(results_dir, out), others, unreadable)
    return pages, len(runs), unreadable


def _judged(
    table: spec.Table, by_path: Mapping[Path, Run], words: Sequence[str], pool: Sequence[str]
) -> list[Judged]:
    """The table at every scale that something was measured at; at the small one where nothing was."""
    all_scales = []
    for scale in SCALES:
        if not any((run.result.task, run.result.scale) == (table.task, scale) for run in by_path.values()):
            continue  # composing the arms' configurations, to look for runs that cannot exist, takes most of the time
        runs = _runs(table, scale, by_path.get, [word for word in words if not word.startswith("scale=")])
        if any(run for by_seed in runs.values() for run in by_seed.values()):
            all_scales.append(judged_of(table, scale, runs, words, pool))
    plan = table.plan("small")
    seeds = range(plan.first, plan.first + plan.looks[0])
    return all_scales or [judge(table, "small", {arm: dict.fromkeys(seeds) for arm in table.arms})]


def write_pages_of(config: Config, always: bool = True) -> list[Path]:
    """Write the pages of the tables that a run belongs to; returns where they are.

    Only runs of these tables are read, however many others are next to them. Not `always`: a page that is newer than
    the run's result is left as it is.
    """
    results_dir = Path(config.results_dir)
    result = RunDirectory(config.directory()).result_file
    pages = []
    for table in spec.of_task(config.task_name):
        words = [f"results_dir={results_dir}"]
        planned = plan(table, config.scale, [config.seed], words)
        if config.directory() not in {by_seed[config.seed].directory() for by_seed in planned.values()}:
            continue
        page = page_of(table.name, config.scale, folder_for(results_dir))
        if always or not page.exists() or page.stat().st_mtime < result.stat().st_mtime:
            from emabench.report import html

            runs = _runs(table, config.scale, _readable, words)
            html.write_table(judged_of(table, config.scale, runs, words), page.parent)
        pages.append(page)
    return pages


def _readable(path: Path) -> Run | None:
    try:
        return read_run_of(path)
    except (DamagedResult, OSError):
        return None


def _runs(table: spec.Table, scale: str, read: Callable[[Path], Run | None], words: Sequence[str]) -> Runs:
    """The runs of the seeds planned, and of as many more as were run; where there are none, those of pilot seeds.

    `read` gives the run of a directory.
    """
    arms = {arm: by_seed[0] for arm, by_seed in plan(table, scale, [0], words).items()}
    for first, least in ((table.plan(scale).first, table.plan(scale).looks[0]), (0, 1)):
        runs: dict[str, dict[int, Run | None]] = {arm: {} for arm in arms}
        for seed in range(first, first + MOST_SEEDS):
            configs = {arm: config.model_copy(update={"seed": seed}) for arm, config in arms.items()}
            at_seed = {arm: read(config.directory()) for arm, config in configs.items()}
            if seed >= first + least and not any(at_seed.values()):
                break
            for arm, run in at_seed.items():
                runs[arm][seed] = run
        if any(run for by_seed in runs.values() for run in by_seed.values()):
            return runs
    return runs
