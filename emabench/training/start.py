"""Start or resume one run: lock its directory, train it in one process or several, write `result.json`.

To resume, run the same command again: the state is taken from the latest intact checkpoint, and every random draw is
a function of (seed, purpose, step), so the resumed run is bit-identical to one that was never stopped.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch

from emabench import tasks
from emabench.config import Config, checked
from emabench.errors import RunFailed, UserError
from emabench.runs.directory import RunDirectory
from emabench.runs.result import Result, parse_result, to_json
from emabench.training import distributed, environment, spawn
from emabench.training.distributed import Group, RankInfo
from emabench.training.failures import explained, write_failure
from emabench.training.interruption import StopRequest, stop_if_parent_dies, stop_requests
from emabench.training.trainer import Trainer


def run(config: Config) -> Result:
    """Train this configuration to its end and measure it, or return the result that it already has.

    Raises:
        UserError: the configuration cannot be run; nothing was lost.
        Interrupted: stopped by a signal; the same command resumes it.
        RunFailed: anything else; `result.json` has status "failed".
    """
    if rank_info := distributed.torchrun_rank_info():
        stop_if_parent_dies(os.getppid())
        return run_rank(config, rank_info)
    if config.devices > 1:
        return spawn.run(config, run_rank)
    return _run(config, Group(), environment.resolve_device(config.device))


def run_rank(config: Config, rank_info: RankInfo) -> Result:
    """`run` as one of several processes that all call this. Each returns the result."""
    config.check_supported(rank_info.world_size)
    with distributed.process_group(rank_info, config.device, config.parallel == "fsdp") as (group, device):
        return _run(config, group, device)


def restored(config: Config, directory: RunDirectory, trusted: Mapping[str, str]) -> Trainer:
    """A run as its latest checkpoint has it. Raises UserError if it has none.

    Args:
        trusted: Keys of the run's configuration that the user repeated, with their values: modules that these name
            may be imported, others not, since the run may be a stranger's.
    """
    module = tasks.load(config.task_name)
    for option, value in module.Task.imports(checked(module.Options, config.task, "task")).items():
        key = f"task.{option}"
        if trusted.get(key) != value:
            raise UserError(
                f"{directory.config}: {key}={value} makes Python import a module; if you trust it, add {key}={value}"
            )
    trainer = Trainer(config, directory, StopRequest())
    if not trainer.step:
        raise UserError(f"{directory.path}: has no intact checkpoint; train it with `emabench …` first")
    return trainer


def _run(config: Config, group: Group, device: torch.device) -> Result:
    directory = RunDirectory(config.directory())
    with _locked(config, directory, group) as existing:
        if existing:
            return existing
        group.on_failure = lambda why: write_failure(config, directory, RunFailed(why.text), why.trace)
        try:
            with explained(directory), stop_requests() as stop:
                result = Trainer(config, directory, stop, group, device).result()
                if group.is_main:
                    directory.write_result(result)
        except RunFailed as error:
            why = group.end_reason()  # if another process failed before this one, that is the reason
            if why and why.kind != "failed":
                raise why.error() from error
            if group.is_main:
                cause = RunFailed(why.text) if why else error.__cause__ or error
                write_failure(config, directory, cause, why.trace if why else traceback.format_exc())
            raise RunFailed(why.text if why else f"{error}; see {directory.error}") from error
        if group.is_main:
            directory.error.unlink(missing_ok=True)
        return result


@contextmanager
def _locked(config: Config, directory: RunDirectory, group: Group) -> Iterator[Result | None]:
    """Prepare and lock the run's directory (the main process does, for all); yields the existing result, if any."""
    with ExitStack() as stack:
        existing = None
        if group.is_main:
            stack.enter_context(directory.locked())
            directory.prepare(config)
            if config.rerun and not directory.rerun_begun.exists():
                with directory.cleared():
                    pass
            existing = directory.result()
            if existing and existing.status == "failed":  # it is tried again
                directory.result_file.unlink()
                directory.error.unlink(missing_ok=True)
                existing = None
        text = group.broadcast(existing and to_json(existing))
        yield parse_result(text, str(directory.result_file)) if text else None
