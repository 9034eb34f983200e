"""Many runs, of a table or a sweep: the options that say where they are executed, and executing them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import yaml

from emabench import plugins
from emabench.config import Config
from emabench.errors import UserError
from emabench.launch import slurm, status
from emabench.launch.local import default_jobs, run_missing

USAGE = "[jobs=N] [launcher=slurm [cluster=PROFILE] [runs_per_job=N]] [--dry-run|--status|--collect]"
COUNTS = ("jobs", "runs_per_job")
ACTIONS = ("--dry-run", "--status", "--collect")


@dataclass
class Options:
    """How runs are executed, as far as the command says."""

    action: str = ""  # one of ACTIONS; empty: run or submit what is missing
    launcher: str = "local"
    cluster: str = "default"
    profile: dict[str, Any] = field(default_factory=dict)  # cluster.KEY=VALUE
    counts: dict[str, int] = field(default_factory=dict)  # COUNTS, and what else the verb counts
    out: str = ""  # folder of the page; empty: below the results directory


def read(
    words: Sequence[str], usage: str, counts: Sequence[str] = COUNTS, takes_out: bool = False
) -> tuple[Options, list[str]]:
    """The options in these words, and the other words. Raises UserError.

    Hydra's spelling is understood as well: `hydra/launcher=slurm` (or `basic`: one after the other), and
    `hydra.launcher.KEY=VALUE` for `cluster.KEY=VALUE`.
    """
    options, rest = Options(), []
    own = (*counts, "launcher", "cluster")
    for word in words:
        key, equals, value = _plain(word).partition("=")
        if word in ACTIONS:
            if options.action not in ("", word):
                raise UserError(f"{word}: one of {', '.join(ACTIONS)}, not several")
            options.action = word
        elif word.startswith("-"):
            raise UserError(f"{word}: there is no such option; {usage}")
        elif key in counts:
            if not value.isdecimal() or int(value) < 1:
                raise UserError(f"{word}: should be a whole number, 1 or more")
            options.counts[key] = int(value)
        elif key == "launcher":
            options.launcher = "local" if value == "basic" else value
            if options.launcher not in ("local", "slurm"):
                raise UserError(f"{word}: is neither local (this machine) nor slurm")
            if value == "basic":
                options.counts["jobs"] = 1
        elif key == "out" and takes_out and value:
            options.out = value
        elif key == "cluster":
            options.cluster = value
        elif key.startswith("cluster."):
            options.profile[key.removeprefix("cluster.")] = _yaml(word, value)
        elif equals and (close := get_close_matches(key, own, 1, 0.7)) and key not in Config.model_fields:
            raise UserError(f"{word}: there is no such key; did you mean {close[0]!r}?")
        else:
            rest.append(word)
    foreign = ("jobs",) if options.launcher == "slurm" else ("cluster", "runs_per_job")
    for word in words:
        if _plain(word).partition("=")[0].partition(".")[0] in foreign:
            other = "local" if options.launcher == "slurm" else "slurm"
            raise UserError(f"{word}: is for launcher={other}")
    return options, rest


def _plain(word: str) -> str:
    """A word in Hydra's spelling in this module's own."""
    if word.startswith("hydra/launcher="):
        return word.removeprefix("hydra/")
    key, launcher, rest = word.lstrip("+").partition("hydra.launcher.")
    return f"cluster.{rest}" if launcher and not key else word


def _yaml(word: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except Exception as error:  # a YAMLError; or, of an impossible date, any error (PyYAML 6)
        raise UserError(f"{word}: the value is not YAML") from error


def execute(name: str, runs: Mapping[str, Config], options: Options, command: Sequence[str]) -> bool:
    """Run, submit or look at these runs, as the options say. `name` is the table's or the sweep's.

    Returns whether the results are to be shown now: not where they were submitted, by `command` and its words, or
    only looked at. Raises UserError before anything is started, Interrupted when asked to stop.
    """
    if not options.action and int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
        raise UserError(
            "torchrun starts the processes of one run; several runs start their own: devices=N or launcher=slurm"
        )
    configs = list(runs.values())
    paths = [word for folder in plugins.given() for word in (plugins.OPTION, str(folder))]
    command = [
        os.environ.get("EMABENCH_CALLED", command[0]),
        *command[1:],
        *paths,
    ]  # as scripts/emabench has it
    if options.action == "--dry-run":
        width = max(map(len, runs))
        for title, at in status.run_states(runs).items():
            print(f"{title:<{width}}  {runs[title].directory()}  {at.state}")
    elif options.action == "--status":
        status.show(runs)
    elif not options.action and options.launcher == "slurm":
        profile = slurm.profile(options.cluster, options.profile)
        sent = slurm.submit(name, configs, profile, options.counts.get("runs_per_job", 1))
        jobs = len(set(sent))
        named = f" in {jobs} job{'s' if jobs > 1 else ''} named {sent[0].name}" if sent else ""
        print(f"submitted {len(sent)} of {len(configs)} run{'' if len(configs) == 1 else 's'}{named}")
        if len(sent) < len(configs):
            print("the others are finished, in the queue or running")
            ending = sum(at.state == "completing" for at in status.run_states(runs).values())
            if ending:
                print(f"{ending} of them are still ending: repeat the command once they have")
        for action in ("--status", "--collect"):
            print(shlex.join([*command, action]))
    else:
        if not options.action:
            names = {config.directory(): title for title, config in runs.items()}
            jobs = min(len(configs), options.counts.get("jobs") or default_jobs(configs))
            run_missing(configs, jobs, names)
        return True
    return False
