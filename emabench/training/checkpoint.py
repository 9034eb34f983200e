"""Checkpoints: written aside, flushed, renamed, and named after their own checksum.

`step-00001000-<sha256>.pt` holds what `torch.load(weights_only=True)` reads. A file whose bytes do not give the
sum in its name is passed over for the one before, so neither a crash while writing nor a flipped bit can be
taken for a state of the run.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from emabench.runs.files import write_atomically

NAME = re.compile(r"step-(\d{8,})-([0-9a-f]{16})\.pt")


def save(directory: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the state after `step` steps, then drop all but the latest `keep`. OSError leaves the old ones."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    path = directory / f"step-{step:08d}-{hashlib.sha256(data).hexdigest()[:16]}.pt"
    write_atomically(path, data)
    for _, old in _found(directory)[keep:]:
        if old != path:
            old.unlink(missing_ok=True)
    return path


def load_latest(directory: Path, warn: Callable[[str], None]) -> tuple[int, dict[str, Any]] | None:
    """The newest whole checkpoint as (step, state), on the CPU; None where there is none."""
    for step, path in _found(directory):
        data = path.read_bytes()
        match = NAME.fullmatch(path.name)
        if match and hashlib.sha256(data).hexdigest()[:16] == match[2]:
            return step, torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        warn(f"{path} is damaged: passed over for the one before")
    return None


def _found(directory: Path) -> list[tuple[int, Path]]:
    """Checkpoints, the newest first."""
    named = [(NAME.fullmatch(path.name), path) for path in directory.glob("step-*.pt")]
    return sorted(((int(match[1]), path) for match, path in named if match), reverse=True)
