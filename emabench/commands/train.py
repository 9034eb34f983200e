"""train one task, with its averages, and measure them"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emabench.compose import configuration
from emabench.errors import DONE, FAILED, UserError

if TYPE_CHECKING:
    from emabench.config import Config


def main(words: Sequence[str]) -> int:
    """`emabench [overrides]`, `emabench -m [overrides]`, `emabench --cfg [overrides]`."""
    several = ("-m", "--multirun")
    if any(word in several for word in words):
        from emabench.launch.sweep import main as sweep

        status, results_dir = sweep([word for word in words if word not in several])
        if results_dir is not None:
            _show_report(results_dir)
        return status
    words = _without_hydras_flags(words)
    flags = [word for word in words if word.startswith("-")]
    overrides = [word for word in words if not word.startswith("-")]
    for flag in flags:
        if flag in ("--dry-run", "--status", "--collect"):
            raise UserError(f"{flag}: is for several runs; add -m (emabench -m …), also for one run")
        if flag != "--cfg":
            raise UserError(
                f"{flag}: there is no such option; -m for a sweep, --cfg to see the configuration, --help"
            )
    for word in overrides:
        if word.startswith("sweep="):
            raise UserError(f"{word}: is for several runs; add -m (emabench -m {word} …)")
        if word.startswith(
            ("launcher=", "hydra/launcher=", "cluster=", "cluster.", "jobs=", "runs_per_job=")
        ):
            raise UserError(
                f"{word}: is for sweeps: where their runs are executed; add -m (emabench -m …), also for one run"
            )
    if flags:
        return show_configuration(overrides)
    config = configuration(overrides)

    from emabench.launch.plan import check_device, existing_run

    before = None if config.rerun else existing_run(config)
    done = before is not None and before.result.status != "failed"
    # Where torchrun has started several processes they have to agree on that first.
    if before is not None and done and os.environ.get("WORLD_SIZE", "1") == "1":
        result = before.result
    else:
        check_device(config)

        from emabench.training.start import run

        result = run(config)
    if os.environ.get("RANK", "0") != "0":  # torchrun: the first process prints for all
        return DONE if result.status == "finished" else FAILED
    if done:
        print(f"{result.status} before, not trained again (nor logged); rerun=true trains it again")

    from emabench.report import terminal

    terminal.show_run(result, path=config.directory())
    print(f"\nfiles   {config.directory()}")
    if result.status == "finished":
        _show_pages(config, done)
    return DONE if result.status == "finished" else FAILED


HYDRAS = {
    *("--info", "-i", "--hydra-help", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    *("--package", "-p", "--resolve", "--shell-completion", "-sc", "--experimental-rerun", "--run", "-r"),
}


def _without_hydras_flags(words: Sequence[str]) -> list[str]:
    """`--cfg job` and `-c job` are `--cfg`; other options of Hydra's are answered with what does the same here."""
    rest: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, equals, value = word.partition("=")
        if name in ("--cfg", "-c"):
            if not equals and queue and queue[0] in ("job", "hydra", "all"):
                value = queue.pop(0)
            if value not in ("", "job"):
                raise UserError(
                    f"--cfg {value}: Hydra's own settings are not used; --cfg shows all that a run has"
                )
            rest.append("--cfg")
        elif name in HYDRAS:
            raise UserError(
                f"{name}: is an option of Hydra's that emabench does not take; --cfg shows a run's configuration, "
                "--help the commands, --path DIR adds tasks, tables and sweeps of your own"
            )
        else:
            rest.append(word)
    return rest


def _show_pages(config: Config, done: bool) -> None:
    """The pages of the tables that this run belongs to, written unless they are newer than the run."""
    from emabench.commands import report

    try:
        for page in report.write_pages_of(config, always=not done):
            print(f"page    {page}")
    except Exception as error:  # of other files: this run is finished all the same
        print(f"page not written: {error}")


def _show_report(results_dir: Path) -> None:
    """The page of everything measured, after a sweep."""
    from emabench.commands import report

    try:
        print(f"page    {report.write([f'results_dir={results_dir}'])[0]}")
    except Exception as error:  # as above
        print(f"page not written: {error}")


def show_configuration(overrides: Sequence[str]) -> int:
    """Print what these words would run with, and the run's directory, without running it."""
    import yaml

    config = configuration(overrides)
    print(yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True), end="")
    print(f"# directory: {config.directory()}")
    return DONE
