"""Metrics of the user's own, `metrics=[NAME]`: a file `metrics/NAME.py` with `better` and `measure(task)`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import ModuleType

from emabench import plugins
from emabench.errors import UserError

DIRECTIONS = ("lower", "higher")


def load(names: Sequence[str], taken: Collection[str]) -> dict[str, ModuleType]:
    """The modules of these metrics by name. Raises UserError for one that is missing, broken, or called as `taken`."""
    modules = {}
    for name in names:
        plugins.get("metrics", name, f"metrics=[{name}]")
        module = plugins.load("metrics", name)
        if name in taken or name in modules:
            raise UserError(
                f"metrics=[{','.join(names)}]: the run measures {name} already; rename {module.__file__}"
            )
        if getattr(module, "better", None) not in DIRECTIONS:
            raise UserError(
                f'{module.__file__}: better = "lower" or better = "higher" says which way is better'
            )
        if not callable(getattr(module, "measure", None)):
            raise UserError(f"{module.__file__}: defines no function measure(task), which returns a number")
        modules[name] = module
    return modules
