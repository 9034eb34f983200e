"""The device and its settings, and what a result records of the machine that made it."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy
import torch

import emabench
from emabench.config import Config
from emabench.errors import UserError
from emabench.masking import masked
from emabench.paths import COMMAND, PACKAGE


def resolve_device(name: str, local_rank: int | None = None) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:1` as an available device. Raises UserError if it is not available.

    local_rank: the index of this process's GPU where a run has several processes; None for a single process.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and local_rank is not None:
        if device.index is not None:
            raise UserError(f"device={name}: is one GPU for several processes; use device=cuda, or devices=1")
        count = torch.cuda.device_count()
        if local_rank >= count:
            raise UserError(f"devices: each process takes a GPU, and torch sees {count} here; use fewer")
        return torch.device("cuda", local_rank)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not count or (device.index or 0) >= count:
            raise UserError(
                f"device={name}: torch sees {count} CUDA devices here; use device=auto or device=cpu"
            )
    return device


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The context of forward passes in a precision: `fp32`, `bf16` or `fp16`.

    Without torch's cache of cast weights: it would go stale when an optimiser steps inside the context, as it does in
    a step that updates two networks and in the fine-tuning of an evaluation.
    """
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype, cache_enabled=False) if dtype else nullcontext()


def make_deterministic() -> None:
    """The same command gives the same bits on the same machine: no autotuned or atomic convolutions."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def numerics(device: torch.device, arithmetic: str) -> dict[str, Any]:
    """What decides the last bits of a result besides its configuration. Saved with each checkpoint.

    Args:
        arithmetic: What computes the averages, `Averager.arithmetic`.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "averages computed by": arithmetic,
        "threads": torch.get_num_threads(),
        "device": f"{device.type} {name}",
        "torch": str(torch.__version__),  # plain, as everything in a checkpoint
        "numpy": numpy.__version__,
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "TF32 convolutions": torch.backends.cudnn.allow_tf32,
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, what differs: "threads: 1, 2 before"."""
    return [
        f"{key}: {now[key]}, {before[key]} before" for key in now if key in before and before[key] != now[key]
    ]


def describe(config: Config, device: torch.device, processes: int = 1) -> dict[str, Any]:
    """Versions, device and code that a result was made with."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    return {
        "emabench": emabench.__version__,
        "commit": _commit(),
        "command": masked(os.environ.get(COMMAND) or shlex.join(sys.argv)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": f"{device.type}: {name}",
        "processes": processes,
        "threads": torch.get_num_threads(),  # of each
        "precision": config.precision,
        **({"plugins": origins} if (origins := config.origins()) else {}),
    }


def _commit() -> str | None:
    """The git commit of the checkout that the package runs from, with + where it has local changes."""
    if not (PACKAGE.parent / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(PACKAGE.parent)]
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10
        )
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", "--", "emabench", "conf"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (head.stdout.strip() + ("+" if dirty.stdout.strip() else "")) or None
