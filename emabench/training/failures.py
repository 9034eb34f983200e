"""What a run leaves behind when it cannot be finished, and the messages that say why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from emabench.config import Config
from emabench.errors import Interrupted, RunFailed, UserError
from emabench.runs.directory import RunDirectory
from emabench.runs.files import FULL, NoRoom, no_room
from emabench.runs.result import Result
from emabench.training import environment

RESUME = "the same command resumes from the last checkpoint"


@contextmanager
def explained(directory: RunDirectory) -> Iterator[None]:
    """Turn whatever goes wrong with a run's files, data or task into RunFailed, with the fix where one is known."""
    try:
        yield
    except (UserError, Interrupted, RunFailed):
        raise
    except Exception as error:
        raise RunFailed(_explanation(directory, error)) from error


def _explanation(directory: RunDirectory, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in FULL:
        full = str(error) if isinstance(error, NoRoom) else no_room(directory.path, None, error)
        return f"{full}; make room (checkpoint.keep=1 needs less), and {RESUME}"
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return (
            f"{directory.path}: a process that reads data died, killed or out of memory; try fewer of them "
            f"(workers=…, 0 for none), and {RESUME} ({' '.join(str(error).split())})"
        )
    return f"{directory.path}: {type(error).__name__}: {error}"


def write_failure(config: Config, directory: RunDirectory, cause: BaseException, trace: str) -> None:
    """Write `error.txt` and a result of status "failed"."""
    with suppress(OSError):  # a full disk: existing files stay, and the reason is reported on the terminal
        directory.error.write_text(trace)
        directory.write_result(failed_result(config, cause))


def failed_result(config: Config, error: BaseException) -> Result:
    """A result that holds only the reason. It does not count as finished: the same command tries again."""
    return Result(
        run_id=config.run_id(),
        task=config.task_name,
        scale=config.scale,
        seed=config.seed,
        steps=config.steps,
        status="failed",
        reason=f"{type(error).__name__}: {error}",
        rows=(),
        metrics={},
        measured_with={},
        references={},
        timing={},
        environment=environment.describe(config, torch.device("cpu")),
    )
