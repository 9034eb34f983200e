"""Snapshots of the power-function averages along a run, for post-hoc synthesis (Karras et al. 2024, §3)."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from emabench.averaging import Averager
from emabench.averaging.posthoc import Snapshot
from emabench.runs.files import write_atomically
from emabench.training.distributed import Group

NAME = re.compile(r"(?P<average>.+)-(?P<step>\d{8,})\.pt")


def save(directory: Path, averager: Averager, step: int, group: Group) -> None:
    """The power-function averages after `step` steps, a file each."""
    directory.mkdir(exist_ok=True)
    for name, profile in averager.profiles.items():
        if profile.keeps_snapshots:
            state = group.full_tensor(averager.export(name))
            if group.is_main:
                buffer = io.BytesIO()
                torch.save(state, buffer)
                write_atomically(directory / f"{name}-{step:08d}.pt", buffer.getbuffer())


def list_snapshots(directory: Path, averager: Averager) -> list[tuple[Snapshot, Path]]:
    """The snapshots in a directory, by step, each with the profile of its average."""
    matches = ((NAME.fullmatch(path.name), path) for path in sorted(directory.glob("*.pt")))
    return [
        (Snapshot(averager.profiles[match["average"]], int(match["step"])), path)
        for match, path in matches
        if match and match["average"] in averager.profiles
    ]


def missing(directory: Path, averager: Averager, every: int, steps: int) -> list[str]:
    """The names of the snapshots that a run of `steps` steps has kept and that are not in its directory."""
    expected = {*range(every, steps + 1, every), steps}
    power = [name for name, profile in averager.profiles.items() if profile.keeps_snapshots]
    names = [f"{name}-{step:08d}.pt" for name in power for step in sorted(expected)]
    return [name for name in names if not (directory / name).is_file()]


def load_states(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """The state_dicts in these files, loaded one at a time."""
    for path in paths:
        yield torch.load(path, map_location="cpu", weights_only=True)
