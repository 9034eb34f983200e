"""run what a table of the article needs, and judge it"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from emabench.compose import configuration
from emabench.config import Config
from emabench.errors import DONE, RunFailed, UserError
from emabench.runs.result import DamagedResult
from emabench.tables import spec
from emabench.tables.gather import Run, Runs, read_run
from emabench.tables.judge import judge

USAGE = "emabench table NAME [seeds=N] [jobs=N] [--dry-run] [overrides]"


def main(words: Sequence[str]) -> int:
    """`emabench table NAME`: run what is missing, print measured beside reported, write the page."""
    if words and words[0] == "numerics":  # no training: rounding errors, measured in this process
        from emabench.bench import numerics

        numerics.main(words[1:])
        return DONE
    name, options, overrides = _read(words)
    table = spec.load(name)
    scale = next((word[6:] for word in overrides if word.startswith("scale=")), "small")
    spec.check_scale(scale)
    seeds = options["seeds"] or table.seed_count(scale)
    planned = plan(table, scale, range(seeds), overrides)
    configs = [config for by_seed in planned.values() for config in by_seed.values()]
    if options["dry_run"]:
        return _show_plan(planned)

    from emabench.launch.local import default_jobs, run_missing

    run_missing(configs, options["jobs"] or default_jobs(configs))
    judged = judge(table, scale, gathered(planned), overrides)

    from emabench.report import html, terminal

    terminal.show(judged)
    page = html.write_table(judged, Path(configs[0].results_dir))
    print(f"\npage    {page}")
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
        return read_run(config.directory())
    except DamagedResult as error:
        raise RunFailed(f"{error}; remove it, and the same command measures the run again") from error


def gathered(planned: Plan) -> Runs:
    """The planned runs as they lie on disk."""
    return {
        arm: {seed: found(config) for seed, config in by_seed.items()} for arm, by_seed in planned.items()
    }


def _read(words: Sequence[str]) -> tuple[str, dict[str, int], list[str]]:
    """NAME first; `seeds=` and `jobs=` are the table's, everything else goes to every run."""
    if not words or "=" in words[0] or words[0].startswith("-"):
        raise UserError(f"{USAGE}: NAME is one of {', '.join(spec.names())}")
    options, overrides = {"seeds": 0, "jobs": 0, "dry_run": 0}, []
    for word in words[1:]:
        key, _, value = word.partition("=")
        if word == "--dry-run":
            options["dry_run"] = 1
        elif key in ("seeds", "jobs"):
            if not value.isdigit() or int(value) < 1:
                raise UserError(f"{word}: should be a whole number, 1 or more")
            options[key] = int(value)
        elif key in ("seed", "task"):
            raise UserError(
                f"{word}: a table sets {key} itself; seeds=N says how many seeds each arm is run with"
            )
        elif word.startswith("-"):
            raise UserError(f"{word}: there is no such option; {USAGE}")
        else:
            overrides.append(word)
    return words[0], options, overrides


def _show_plan(planned: Plan) -> int:
    for arm, by_seed in planned.items():
        for seed, config in by_seed.items():
            there = found(config)
            print(f"{arm:<16} seed {seed}  {config.directory()}  {there.result.status if there else 'to do'}")
    return DONE
