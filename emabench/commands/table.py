"""run what a table of the article needs, and judge it"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emabench import plugins
from emabench.compose import configuration
from emabench.errors import DONE, RunFailed, UserError, nearest
from emabench.late import Late

if TYPE_CHECKING:
    from emabench.config import Config
    from emabench.launch import many
    from emabench.tables import provenance, spec
    from emabench.tables.gather import Runs
    from emabench.tables.judge import Judged

    Plan = dict[str, dict[int, Config]]  # by arm, by seed: the run's configuration
else:  # a mistyped name is answered without them
    many, spec = Late("emabench.launch.many"), Late("emabench.tables.spec")
    provenance = Late("emabench.tables.provenance")

NAME = "emabench table NAME [seeds=N] [--pilot] [pool=…]"


def main(words: Sequence[str]) -> int:
    """`emabench table NAME [seeds=N] [jobs=N] [launcher=slurm [cluster=PROFILE] [runs_per_job=N]] [overrides]`

    Run what is missing of the seeds that the table plans (of seeds=N, the first N of them), print measured next to
    reported, write the page. --pilot: seeds from 0 on, for trying out. pool=code,precision,device: judge runs together
    that differ in these. --dry-run: show what would run;
    --status: how far the runs are; --collect: judge the existing results; --from FILE.json: judge the runs of a file that
    a report wrote, running nothing; out=DIR: where the page goes. `emabench table numerics` is of rounding errors.
    """
    if words and words[0] == "numerics":  # no training: rounding errors, measured in this process
        from emabench.bench import numerics

        numerics.main(words[1:])
        return DONE
    words, file = _from(words)
    name, options, rest = _read([word for word in words if word != "--pilot"])
    overrides, pool = pooled(rest)
    table = spec.load(name)
    if file is not None:
        return _show_file(table, file, options, overrides, pool)
    scale = next((word[6:] for word in overrides if word.startswith("scale=")), "small")
    spec.check_scale(scale)
    seeds = options.counts.get("seeds") or table.plan(scale).looks[0]
    first = 0 if "--pilot" in words else table.plan(scale).first
    planned = plan(table, scale, range(first, first + seeds), overrides)
    named = {f"{arm} seed {seed}": c for arm, by_seed in planned.items() for seed, c in by_seed.items()}
    _check_averages(table, scale, planned, overrides)
    if not many.execute(table.name, named, options, ["emabench", "table", *words]):
        return DONE

    from emabench.report import html, terminal
    from emabench.report.files import folder_for

    runs = gathered(planned)
    judged = judged_of(table, scale, runs, overrides, pool)

    terminal.show(judged)
    folder = folder_for(Path(next(iter(named.values())).results_dir), options.out)
    try:
        print(f"\npage    {html.write_table(judged, folder)}")
    except UserError as error:  # the results of a colleague, say: they are shown all the same
        if options.out:
            raise
        print(f"\npage not written: {error}")
    statuses = [run.result.status for by_seed in runs.values() for run in by_seed.values() if run]
    lacking = len(named) - len(statuses) + statuses.count("failed")
    if lacking and not options.action:
        raise RunFailed(
            f"{lacking} of {len(named)} runs failed, or another process has them (the errors are above, or in each "
            "run's log.txt); the same command tries again what is missing"
        )
    return DONE


def pooled(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words without `pool=…`, and in what runs may differ and still be judged together."""
    pool: list[str] = []
    for word in words:
        if word.startswith("pool="):
            pool = [each for each in word.removeprefix("pool=").strip("[]").split(",") if each]
            for each in pool:
                if each not in provenance.POOLABLE:
                    raise UserError(
                        f"{word}: {each} is none of {', '.join(provenance.POOLABLE)}{nearest(each, provenance.POOLABLE)}"
                    )
    return [word for word in words if not word.startswith("pool=")], pool


def judged_of(
    table: spec.Table, scale: str, runs: Runs, overrides: Sequence[str], pool: Sequence[str] = ()
) -> Judged:
    """The table judged on these runs, each claim with the commit since which it stands."""
    from emabench.tables.judge import judge

    since = provenance.claims_since(table.file) if table.file else []
    return judge(table, scale, runs, overrides, pool=pool, since=since)


def _from(words: Sequence[str]) -> tuple[list[str], Path | None]:
    """The words without `--from FILE` (or `--from=FILE`), and the file."""
    rest, file = list(words), None
    for i, word in enumerate(words):
        if word == "--from":
            if i + 1 == len(words):
                raise UserError(f"--from: which file? {_usage()}")
            file, rest = Path(words[i + 1]), [*words[:i], *words[i + 2 :]]
        elif word.startswith("--from="):
            file, rest = Path(word.removeprefix("--from=")), [*words[:i], *words[i + 1 :]]
    return rest, file


def _show_file(
    table: spec.Table, file: Path, options: many.Options, overrides: Sequence[str], pool: Sequence[str]
) -> int:
    """Judge the runs of a file, print them and write the page; nothing is run."""
    if options.action or options.counts:
        raise UserError(
            f"--from {file}: runs nothing, so neither seeds=, jobs= nor {options.action or 'an action'} apply"
        )
    from emabench.report import html, terminal
    from emabench.report.files import folder_for
    from emabench.tables import records

    scale, runs = records.read(file, table)
    results_dir = Path(configuration([f"task={table.task}", *overrides]).results_dir)
    words = [word for word in overrides if not word.startswith("results_dir=")]
    judged = judged_of(table, scale, runs, words, pool)
    terminal.show(judged)
    print(f"\npage    {html.write_table(judged, folder_for(results_dir, options.out))}")
    return DONE


def _check_averages(table: spec.Table, scale: str, planned: Plan, overrides: Sequence[str]) -> None:
    """The user's words may not take away what the rows are measured with."""
    before = plan(table, scale, [0], [word for word in overrides if not _of_averages(word)])
    for key, row in table.rows.items():
        average = table.average(key, scale)
        was = next(iter(before[row.arm].values())).profiles()
        for config in planned[row.arm].values():
            if average in was and average not in config.profiles():
                words = " ".join(filter(_of_averages, overrides))
                raise UserError(
                    f"{words}: takes away {average}, which the row {row.label!r} of {table.name} is; keep it, "
                    "or train a run of your own without `table`"
                )


def _of_averages(word: str) -> bool:
    return word.lstrip("+~").startswith(("ema.", "averages"))


def plan(table: spec.Table, scale: str, seeds: Iterable[int], overrides: Sequence[str]) -> Plan:
    """The runs that a table needs. The user's words come last and win."""
    seeds = list(seeds)
    arms = {
        arm: configuration([*table.words(arm, scale), f"group={table.name}", *overrides])
        for arm in table.arms
    }
    return {
        arm: {seed: config.model_copy(update={"seed": seed}) for seed in seeds}
        for arm, config in arms.items()
    }


def gathered(planned: Plan) -> Runs:
    """The planned runs that have a result."""
    from emabench.launch.plan import existing_run

    return {
        arm: {seed: existing_run(config) for seed, config in by_seed.items()}
        for arm, by_seed in planned.items()
    }


def _usage() -> str:
    return f"{NAME} {many.USAGE} [--from FILE.json] [out=DIR] [overrides]"


def _read(words: Sequence[str]) -> tuple[str, many.Options, list[str]]:
    """NAME first; then the table's own words, everything else goes to every run."""
    if not words or "=" in words[0] or words[0].startswith("-"):
        raise UserError(f"{NAME} …: NAME is one of {', '.join(plugins.find('conf/table'))}")
    plugins.get("conf/table", words[0], f"table {words[0]}")
    options, rest = many.read(words[1:], _usage(), ("seeds", *many.COUNTS), takes_out=True)
    for word in rest:
        if (key := word.partition("=")[0]) in ("seed", "task"):
            raise UserError(
                f"{word}: a table sets {key} itself; seeds=N says how many seeds each arm is run with"
            )
    return words[0], options, rest
