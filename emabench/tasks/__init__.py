"""Tasks, found by name: `emabench/tasks/<name>.py` beside `conf/task/<name>.yaml`."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def load(name: str) -> ModuleType:
    """The module of a task: it has `Options` (its section of the configuration) and `Task`."""
    return import_module(f"emabench.tasks.{name}")
