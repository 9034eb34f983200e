"""Tasks, found by name: `tasks/NAME.py` and `conf/task/NAME.yaml`, of the package or of a user's own folder."""

from __future__ import annotations

from types import ModuleType

from emabench import plugins
from emabench.errors import UserError


def load(name: str) -> ModuleType:
    """The module of a task: it has `Options` (its section of the configuration) and `Task`. Raises UserError."""
    module = plugins.load("tasks", name)
    for needed in ("Options", "Task"):
        if not hasattr(module, needed):
            raise UserError(f"{module.__file__}: defines no class {needed}, which a task has")
    return module
