"""Build a task from its configuration: check its options and hand it what the harness provides."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from emabench import tasks
from emabench.config import Config, checked
from emabench.paths import cache_dir
from emabench.seeding import seed_default
from emabench.tasks.base import Context, Task
from emabench.training.distributed import Group
from emabench.training.optimizer import ScheduledOptimizer
from emabench.training.progress import Progress


def build_task(
    config: Config,
    device: torch.device,
    progress: Progress,
    group: Group | None = None,
    optimizers: list[ScheduledOptimizer] | None = None,
) -> Task:
    """The task of a configuration, with the initial weights of its seed.

    Args:
        group: The processes that train it together; None for one process.
        optimizers: The optimisers that the task makes are appended here.
    """
    group = group or Group()
    module = tasks.load(config.task_name)
    options = checked(module.Options, config.task, at="task")
    context = Context(
        seed=config.seed,
        steps=config.steps,
        batch_size=config.batch_size,
        device=device,
        data_dir=Path(config.data_dir),
        cache_dir=cache_dir(),
        workers=config.workers,
        optimizer=functools.partial(_optimizer, config, device, [] if optimizers is None else optimizers),
        decay=config.decays()[0] if config.ema.active else None,
        progress=progress.say,
        rank=group.rank,
        world_size=group.world_size,
        parallel=functools.partial(_parallel, config, group),
        all_gather=group.all_gather,
        all_reduce_mean=group.all_reduce_mean,
    )
    seed_default(config.seed, "init", 0, device)
    return module.Task(options, context)


def _optimizer(
    config: Config, device: torch.device, optimizers: list[ScheduledOptimizer], params: Any
) -> ScheduledOptimizer:
    optimizers.append(ScheduledOptimizer(params, config, device))
    return optimizers[-1]


def _parallel(config: Config, group: Group, module: nn.Module, **options: bool) -> nn.Module:
    """`Context.parallel`. No parameter changes its memory layout after this."""
    if config.channels_last:
        module.to(memory_format=torch.channels_last)
    return group.parallel(module, **options)
