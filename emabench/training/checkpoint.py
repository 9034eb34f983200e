"""Checkpoints: written aside, flushed, renamed, and named after their own checksum.

`step-00001000-<sha256>.pt` holds what `torch.load(weights_only=True)` reads. A file that does not
match the checksum in its name is skipped in favour of the previous one, so neither a crash while writing nor a
flipped bit can be mistaken for a state of the run. Training copies its state and continues; pickling, checksum,
writing, flushing and renaming happen in a thread.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emabench.runs.files import write_atomically

NAME = re.compile(r"step-(\d{8,})-([0-9a-f]{16})\.pt")


def save(directory: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the state after `step` steps, then drop all but the latest `keep`. OSError leaves the old ones."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    path = directory / f"step-{step:08d}-{hashlib.sha256(data).hexdigest()[:16]}.pt"
    write_atomically(path, data)
    existing = _list(directory)
    later = sum(at > step for at, _ in existing)  # damaged, or training would have resumed from them
    for _, old in [*existing[:later], *existing[later + keep :]]:
        if old != path:
            old.unlink(missing_ok=True)
    return path


class Writer:
    """Writes one run's checkpoints in a thread while training continues; at most one is pending.

    The state is copied before `save` returns. An error of the thread (`OSError`) is raised by the next `save` or by
    `join`; none is swallowed.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory, self.keep = directory, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None

    def save(self, step: int, state: dict[str, Any], first: Callable[[], None]) -> None:
        """Write the state after `step` steps; `first` runs before it, to flush what the checkpoint relies on."""
        self.join()
        state = copy_to_cpu(state, {})

        def write() -> Path:
            first()
            return save(self.directory, step, state, self.keep)

        self._pending = self._thread.submit(write)

    def join(self) -> None:
        """Wait until the pending checkpoint is on the disk."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()


def copy_to_cpu(value: Any, memo: dict[Any, Tensor]) -> Any:
    """A deep copy on the CPU; a tensor that occurs twice is copied once.

    Ten times as fast as pickling, which takes longest in writing a checkpoint of many small tensors.
    """
    if isinstance(value, Tensor):
        key = (value.data_ptr(), value.dtype, value.shape, value.stride(), value.device)
        if not value.numel() or key not in memo:
            memo[key] = value.detach().to("cpu", copy=True)
        return memo[key]
    if isinstance(value, dict):
        result = copy(value)  # keeps the type: a module's OrderedDict carries its versions
        for name, item in value.items():
            result[name] = copy_to_cpu(item, memo)
        return result
    if isinstance(value, list | tuple):
        return type(value)([copy_to_cpu(item, memo) for item in value])
    return deepcopy(value)


def load_latest(directory: Path, warn: Callable[[str], None]) -> tuple[int, dict[str, Any]] | None:
    """The newest intact checkpoint as (step, state), on the CPU; None if there is none."""
    for step, path in _list(directory):
        match = NAME.fullmatch(path.name)
        why = "its bytes do not match the checksum in its name"
        try:
            data = path.read_bytes()
        except OSError as error:  # a bad sector, say
            match, why = None, str(error.strerror)
        if match and hashlib.sha256(data).hexdigest()[:16] == match[2]:
            try:
                state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
                if not isinstance(state, dict) or state.get("step", step) == step:
                    return step, state
                why = f"it is of step {state['step']}, and was renamed"
            except (
                pickle.UnpicklingError,
                RuntimeError,
                EOFError,
            ) as error:  # the bytes are intact, but are no checkpoint
                why = str(error).strip().partition("\n")[0]
        warn(f"{path} is damaged ({why}): using the previous one")
    return None


def _list(directory: Path) -> list[tuple[int, Path]]:
    """(step, path) of each checkpoint, newest first."""
    matches = [(NAME.fullmatch(path.name), path) for path in directory.glob("step-*.pt")]
    return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)
