"""The types of claims: each is a file in this folder with one class, found here; `AnyClaim` is any of them."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from emabench.tables.claim import Claim


def types() -> list[type[Claim]]:
    """The class of every type of claim, in the order of their files' names."""
    modules = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    classes = [each for module in modules for each in vars(module).values() if isinstance(each, type)]
    return [
        each
        for each in classes
        if issubclass(each, Claim) and each.__module__.startswith(__name__) and "type" in each.model_fields
    ]


if TYPE_CHECKING:
    AnyClaim = Claim
else:
    AnyClaim = Annotated[Union[tuple(types())], Field(discriminator="type")]  # noqa: UP007
