"""run what a table of the article needs, and judge it"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from emabench.compose import configuration
from emabench.config import Config
from emabench.errors import DONE, RunFailed, UserError
from emabench.runs.result import DamagedResult
from emabench.tables import spec
from emabench.tables.gather import Run, Runs, read_run_of
from emabench.tables.judge import judge

USAGE = (
    "emabench table NAME [seeds=N] [jobs=N] [launcher=slurm [cluster=PROFILE] [runs_per_job=N]] "
    "[--dry-run|--status|--collect] [overrides]"
)

COUNTS = ("seeds", "jobs", "runs_per_job")
OWN = (*COUNTS, "launcher", "cluster")


@dataclass
class Options:
    """The words that are the table's own."""

    action: str = ""  # dry-run, status, collect; empty: run or submit what is missing
    launcher: str = "local"
    cluster: str = "default"
    profile: dict[str, Any] = field(default_factory=dict)  # cluster.KEY=VALUE
    numbers: dict[str, int] = field(default_factory=dict)  # seeds, jobs, runs_per_job


def main(words: Sequence[str]) -> int:
    """`emabench table NAME [seeds=N] [jobs=N] [launcher=slurm [cluster=PROFILE] [runs_per_job=N]] [overrides]`

    Run what is missing, print measured beside reported, write the page. --dry-run: show what would run;
    --status: how far the runs are; --collect: judge what is there. `emabench table numerics` is of rounding errors.
    """
    if words and words[0] == "numerics":  # no training: rounding errors, measured in this process
        from emabench.bench import numerics

        numerics.main(words[1:])
        return DONE
    name, options, overrides = _read(words)
    table = spec.load(name)
    scale = next((word[6:] for word in overrides if word.startswith("scale=")), "small")
    spec.check_scale(scale)
    seeds = options.numbers.get("seeds") or table.seed_count(scale)
    planned = plan(table, scale, range(seeds), overrides)
    configs = [config for by_seed in planned.values() for config in by_seed.values()]
    _check_averages(table, scale, planned, overrides)
    if options.action == "dry-run":
        return _show_plan(planned)
    if options.action == "status":
        from emabench.launch import status

        status.show(
            {f"{arm} seed {seed}": c for arm, by_seed in planned.items() for seed, c in by_seed.items()}
        )
        return DONE
    if options.launcher == "slurm" and not options.action:
        return _submit(table.name, configs, options, words)
    if not options.action:
        from emabench.launch.local import default_jobs, run_missing

        names = {
            c.directory(): f"{arm}, seed {n}" for arm, by_seed in planned.items() for n, c in by_seed.items()
        }
        run_missing(configs, options.numbers.get("jobs") or default_jobs(configs), names)
    runs = gathered(planned)
    judged = judge(table, scale, runs, overrides)

    from emabench.report import html, terminal

    terminal.show(judged)
    page = html.write_table(judged, Path(configs[0].results_dir))
    print(f"\npage    {page}")
    there = [run.result.status for by_seed in runs.values() for run in by_seed.values() if run]
    lacking = len(configs) - len(there) + there.count("failed")
    if lacking and not options.action:
        raise RunFailed(
            f"{lacking} of {len(configs)} runs failed (their words are above, or in each run's log.txt); "
            "the same command tries them again"
        )
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
                    f"{words}: takes away {average}, which the row {row.label!r} of {table.name} is; leave it there, "
                    "or train a run of your own without `table`"
                )


def _of_averages(word: str) -> bool:
    return word.lstrip("+~").startswith(("ema.", "averages"))


def _submit(table: str, configs: Sequence[Config], options: Options, words: Sequence[str]) -> int:
    from emabench.launch import slurm

    profile = slurm.profile(options.cluster, options.profile)
    sent = slurm.submit(table, configs, profile, options.numbers.get("runs_per_job", 1))
    jobs = len({run.job for run in sent})
    named = f" in {jobs} job{'s' if jobs > 1 else ''} named {sent[0].name}" if sent else ""
    print(f"submitted {len(sent)} of {len(configs)} runs{named}")
    if len(sent) < len(configs):
        print("the others are finished, or in the queue already")
    for action in ("--status", "--collect"):
        print(f"emabench table {shlex.join([*words, action])}")
    return DONE


Plan = dict[str, dict[int, Config]]  # by arm, by seed: the run's configuration


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


def found(config: Config) -> Run | None:
    """One planned run, None while there is no result. A damaged result is said, with the mend."""
    try:
        return read_run_of(config.directory())
    except DamagedResult as error:
        raise RunFailed(f"{error}; remove it, and the same command measures the run again") from error


def gathered(planned: Plan) -> Runs:
    """The planned runs as they lie on disk."""
    return {
        arm: {seed: found(config) for seed, config in by_seed.items()} for arm, by_seed in planned.items()
    }


def _read(words: Sequence[str]) -> tuple[str, Options, list[str]]:
    """NAME first; then the table's own words, everything else goes to every run."""
    if not words or "=" in words[0] or words[0].startswith("-"):
        raise UserError(f"{USAGE}: NAME is one of {', '.join(spec.names())}")
    options, overrides = Options(), []
    for word in words[1:]:
        key, _, value = word.partition("=")
        if word in ("--dry-run", "--status", "--collect"):
            options.action = word[2:]
        elif key in COUNTS:
            if not value.isdigit() or int(value) < 1:
                raise UserError(f"{word}: should be a whole number, 1 or more")
            options.numbers[key] = int(value)
        elif key == "launcher":
            if value not in ("local", "slurm"):
                raise UserError(f"{word}: is neither local nor slurm")
            options.launcher = value
        elif key == "cluster":
            options.cluster = value
        elif key.startswith("cluster."):
            options.profile[key.removeprefix("cluster.")] = _yaml(word, value)
        elif key in ("seed", "task"):
            raise UserError(
                f"{word}: a table sets {key} itself; seeds=N says how many seeds each arm is run with"
            )
        elif word.startswith("-"):
            raise UserError(f"{word}: there is no such option; {USAGE}")
        elif (close := get_close_matches(key, OWN, 1, 0.8)) and key not in Config.model_fields:
            raise UserError(f"{word}: there is no such key; did you mean {close[0]!r}?")
        else:
            overrides.append(word)
    foreign = ("jobs",) if options.launcher == "slurm" else ("cluster", "runs_per_job")
    for word in words[1:]:
        if word.partition("=")[0].partition(".")[0] in foreign:
            other = "local" if options.launcher == "slurm" else "slurm"
            raise UserError(f"{word}: is for launcher={other}")
    return words[0], options, overrides


def _yaml(word: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"{word}: the value is not YAML") from error


def _show_plan(planned: Plan) -> int:
    for arm, by_seed in planned.items():
        for seed, config in by_seed.items():
            there = found(config)
            print(f"{arm:<16} seed {seed}  {config.directory()}  {there.result.status if there else 'to do'}")
    return DONE
