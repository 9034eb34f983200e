"""NAME: how large the weights are, their Euclidean norm. Measured with metrics=[NAME]."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from emabench.tasks.base import Task

better = "lower"  # or "higher"


def measure(task: Task) -> float:
    """Measure the weights in place: the raw ones, then each average.

    Called right after `task.evaluate()`, in eval mode, without gradients. Draw random numbers from torch's default
    generator alone, which is the same for every set of weights, and leave the task as it is.

    Args:
        task: `task.averaged()` is the module with the weights; a task's own attributes hold its data.

    Returns:
        A number; one that is not finite is reported as missing, with the reason.
    """
    weights = [parameter.detach().double().flatten() for parameter in task.averaged().parameters()]
    return float(torch.cat(weights).norm())
