"""Checks of runs before the first of them starts."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from pathlib import Path

from emabench import tasks
from emabench.config import Config, checked
from emabench.data import catalog, text
from emabench.errors import RunFailed, UserError
from emabench.metrics import own
from emabench.runs.result import DamagedResult
from emabench.tables.gather import Run, read_run_of


def existing_run(config: Config) -> Run | None:
    """The run of a configuration, None while it has no result. Raises RunFailed for a damaged one."""
    try:
        return read_run_of(config.directory())
    except DamagedResult as error:
        raise RunFailed(f"{error}; remove it, and the same command measures the run again") from error


def has_gpu_driver() -> bool:
    """Whether this machine has a driver that torch's `cuda` devices need; found out without importing torch."""
    if Path("/dev/kfd").exists():  # AMD's
        return True
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def check_device(config: Config) -> None:
    """Raises UserError for `device=cuda` where there is no driver for it."""
    if config.device.startswith("cuda") and not has_gpu_driver():
        raise UserError(
            f"device={config.device}: this machine has no CUDA driver; use device=auto or device=cpu"
        )


def check(configs: Iterable[Config]) -> None:
    """Every run's task options, its processes, and whether its data exists. Raises UserError for the first mistake."""
    for config in configs:
        module = tasks.load(config.task_name)
        options = checked(module.Options, config.task, at="task")
        module.Task.check(options, config.batch_size)
        own.load(config.metrics, module.Task.metrics)
        name, data_dir = config.task.get("data"), Path(config.data_dir)
        if name in catalog.DATASETS and not catalog.found(name, data_dir):
            catalog.located(name, data_dir)  # raises with where it was looked for, and how to get it
        if corpus := config.task.get("corpus"):
            text.located(corpus, data_dir)
