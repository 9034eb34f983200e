"""Checkpoints: written aside, flushed, renamed, and named after their own checksum.

`step-00001000-<sha256>.pt` holds what `torch.load(weights_only=True)` reads. A file whose bytes do not give the
sum in its name is passed over for the one before, so neither a crash while writing nor a flipped bit can be
taken for a state of the run. Training copies its state and goes on; pickling, checksum, writing, flushing and
renaming happen in one thread beside it.
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
    found = _found(directory)
    later = sum(at > step for at, _ in found)  # damaged, or training would have gone on from there
    for _, old in [*found[:later], *found[later + keep :]]:
        if old != path:
            old.unlink(missing_ok=True)
    return path


class Writer:
    """Writes one run's checkpoints while training goes on: at most one is on its way to the disk.

    The state is copied before `save` returns. Whatever goes wrong with the writing (`OSError`) is raised by the
    next `save` or by `join`; nothing is skipped in silence.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory, self.keep = directory, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._on_its_way: Future[Path] | None = None

    def save(self, step: int, state: dict[str, Any], first: Callable[[], None]) -> None:
        """Hand over the state after `step` steps; `first` makes durable what the checkpoint counts on."""
        self.join()
        state = copied(state, {})

        def write() -> Path:
            first()
            return save(self.directory, step, state, self.keep)

        self._on_its_way = self._thread.submit(write)

    def join(self) -> None:
        """Wait until what was handed over is on the disk."""
        last, self._on_its_way = self._on_its_way, None
        if last:
            last.result()


def copied(value: Any, memo: dict[Any, Tensor]) -> Any:
    """A copy on the CPU that training does not reach; one tensor held twice stays one.

    Ten times as fast as pickling, which is what takes longest in writing a checkpoint of many small tensors.
    """
    if isinstance(value, Tensor):
        key = (value.data_ptr(), value.dtype, value.shape, value.stride(), value.device)
        if not value.numel() or key not in memo:
            memo[key] = value.detach().to("cpu", copy=True)
        return memo[key]
    if isinstance(value, dict):
        whole = copy(value)  # of its own kind: an OrderedDict of a module carries versions
        for name, item in value.items():
            whole[name] = copied(item, memo)
        return whole
    if isinstance(value, list | tuple):
        return type(value)([copied(item, memo) for item in value])
    return deepcopy(value)


def load_latest(directory: Path, warn: Callable[[str], None]) -> tuple[int, dict[str, Any]] | None:
    """The newest whole checkpoint as (step, state), on the CPU; None where there is none."""
    for step, path in _found(directory):
        match = NAME.fullmatch(path.name)
        why = "its bytes do not give the sum in its name"
        try:
            data = path.read_bytes()
        except OSError as error:  # a bad sector, say
            match, why = None, str(error.strerror)
        if match and hashlib.sha256(data).hexdigest()[:16] == match[2]:
            try:
                return step, torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            except (pickle.UnpicklingError, RuntimeError, EOFError) as error:  # whole, and no checkpoint
                why = str(error).strip().partition("\n")[0]
        warn(f"{path} is damaged ({why}): passed over for the one before")
    return None


def _found(directory: Path) -> list[tuple[int, Path]]:
    """Checkpoints, the newest first."""
    named = [(NAME.fullmatch(path.name), path) for path in directory.glob("step-*.pt")]
    return sorted(((int(match[1]), path) for match, path in named if match), reverse=True)
