"""Checks that hold for several runs before the first of them starts."""

from __future__ import annotations

from collections.abc import Iterable

from emabench import tasks
from emabench.config import Config, checked


def check(configs: Iterable[Config]) -> None:
    """Every run's task options, typed. Raises UserError for the first that is wrong."""
    for config in configs:
        checked(tasks.load(config.task_name).Options, config.task, at="task")
