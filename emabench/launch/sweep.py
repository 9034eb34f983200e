"""`emabench -m …`: a Hydra multirun. Every job is checked before the first one starts.

Hydra's launchers and sweepers apply (`hydra/launcher=…`). A finished run is not run again, so an interrupted
sweep goes on with the same command; a job that fails does not take the others down.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from unittest.mock import patch

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from emabench import compose
from emabench.config import Config, bind, checked
from emabench.errors import DONE, FAILED, Interrupted, RunFailed, UserError
from emabench.launch.plan import check
from emabench.paths import conf_dir
from emabench.runs.directory import RunDirectory


def main(overrides: Sequence[str]) -> int:
    """Run every combination and print a line on each."""
    jobs = compose.sweep(overrides)
    configs = [compose.configuration(job) for job in jobs]
    check(configs, here=not any(word.startswith("hydra/launcher=") for word in overrides))
    resolved = {_words(job): config.model_dump() for job, config in zip(jobs, configs, strict=True)}

    def job(composed: DictConfig) -> None:
        # A launcher may take this elsewhere and compose anew, hours later, from files that were edited meanwhile:
        # the job carries what was settled here. Only a sweeper of its own mind asks for what is not known here.
        compose.register_resolvers()
        values = resolved.get(_words(HydraConfig.get().overrides.task))
        _run(checked(Config, values) if values else bind(composed))

    sweep = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(job)
    with patch.object(sys, "argv", ["emabench", "--multirun", *overrides]), _submitting(overrides):
        sweep()
    return _summary(jobs, configs)


def _words(job: Sequence[str]) -> tuple[str, ...]:
    """The overrides of a job, however they were spaced."""
    return tuple(f"{o.get_key_element()}={o.get_value_element_as_str()}" for o in compose.parse(list(job)))


def _submitting(overrides: Sequence[str]) -> AbstractContextManager[None]:
    """Jobs may be submitted from within a job: see `slurm.outside_jobs`."""
    if not any(word.startswith("hydra/launcher=") for word in overrides):
        return nullcontext()
    from emabench.launch.slurm import outside_jobs

    return outside_jobs()


def _run(config: Config) -> None:
    """One job, in whatever process the launcher runs it."""
    from emabench.training.run import run

    try:
        run(config)
    except (RunFailed, UserError) as error:
        print(f"emabench: {error}", file=sys.stderr)
    except Interrupted as error:
        if "SUBMITIT_EXECUTOR" in os.environ:
            from emabench.launch.slurm import hand_back

            hand_back()
        raise KeyboardInterrupt from error  # ends the sweep too, not this job alone


def _summary(jobs: list[list[str]], configs: list[Config]) -> int:
    varying = [i for i in range(len(jobs[0])) if len({job[i] for job in jobs}) > 1] if jobs[0] else []
    results = [RunDirectory(config.directory()).result() for config in configs]
    metrics = [next(iter(result.metrics), "") if result else "" for result in results]
    titles = list(dict.fromkeys(filter(None, metrics)))
    title = titles[0] if len(titles) == 1 else None
    shown = Table(box=None, padding=(0, 2, 0, 0), title=title, title_justify="left", title_style="bold")
    shown.add_column("job", overflow="fold")
    for heading in ("status", *([] if title else ["metric"]), "raw", "best", "average", "run id ends in"):
        shown.add_column(heading, no_wrap=True, justify="right" if heading in ("raw", "best") else "left")
    for job, config, result, metric in zip(jobs, configs, results, metrics, strict=True):
        name = " ".join(job[i] for i in varying) or config.task_name
        row = [name, result.status if result else "not run", *([] if title else [metric])]
        rows = [r for r in result.rows if r.metrics.get(metric) is not None] if result else []
        if result and rows:
            sign = 1 if result.metrics[metric] == "higher" else -1
            best = max(rows, key=lambda r: sign * float(r.metrics[metric] or 0))
            raw = result.row("raw")
            values = [raw.metrics[metric] if raw else None, best.metrics[metric]]
            row += [*map(_number, values), best.average]
        else:
            row += ["–", "–", "–"]
        shown.add_row(*row, config.run_id().rpartition("-")[2])
    Console().print(shown)
    return DONE if all(result and result.status == "finished" for result in results) else FAILED


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
