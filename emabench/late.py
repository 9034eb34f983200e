"""Modules that are imported when they are first used, in files that short commands read too."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Late:
    """Stands for a module until one of its names is asked for: `np = Late("numpy")`."""

    def __init__(self, name: str) -> None:
        self._module = name

    def __getattr__(self, name: str) -> Any:
        value = getattr(import_module(self._module), name)
        setattr(self, name, value)
        return value
