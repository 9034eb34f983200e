"""Where configuration and caches are."""

from __future__ import annotations

import os
from pathlib import Path

COMMAND = (
    "EMABENCH_COMMAND"  # environment variable: the words that a user typed, for processes started by them
)
PACKAGE = Path(__file__).resolve().parent


def conf_dir() -> Path:
    """The folder `conf/`: inside the package when installed from a wheel, next to it in a checkout."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def cache_dir() -> Path:
    """What is computed once for all runs; `EMABENCH_CACHE` moves it."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emabench"
    return Path(os.environ.get("EMABENCH_CACHE") or default)
