"""The types of claims: each is a file in this folder with one class, found here; `AnyClaim` is any of them.

A user's own are in `claims/TYPE.py` of a folder that `--path` names, and join them when a table is read.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field

from emabench import plugins
from emabench.errors import UserError
from emabench.tables.claim import Claim


def types() -> list[type[Claim]]:
    """The class of every type of claim, in the order of their files' names."""
    modules = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return [each for module in modules for each in _defined_in(module)]


def outside_types() -> list[type[Claim]]:
    """The same for those from outside the package. A file that is broken is named to the user and left out."""
    result: list[type[Claim]] = []
    for name, item in plugins.find("claims").items():
        if not item.source.built_in:
            try:
                result += _defined_in(plugins.load("claims", name))
            except UserError as error:
                plugins.left_out(str(error))
    return result


def _defined_in(module: ModuleType) -> list[type[Claim]]:
    classes = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, Claim)]
    return [each for each in classes if each.__module__ == module.__name__ and "type" in each.model_fields]


def any_of(types: Sequence[type[Claim]]) -> Any:
    """The annotation of a claim of one of these types, distinguished by its key `type`."""
    return Annotated[Union[tuple(types)], Field(discriminator="type")]  # noqa: UP007


if TYPE_CHECKING:
    AnyClaim = Claim
else:
    AnyClaim = any_of(types())
