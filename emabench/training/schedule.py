"""The learning rate over a run, as a pure function of the step."""

from __future__ import annotations

import math

from emabench.config import ScheduleConfig


def factor(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """The multiplier of `optimizer.lr` at `step` (counted from 0) of `steps`."""
    warmup = min(1.0, (step + 1) / schedule.warmup) if schedule.warmup else 1.0
    if schedule.name == "constant":
        return warmup
    if schedule.name == "step":
        passed = sum(step >= milestone * steps for milestone in schedule.milestones)
        return warmup * schedule.factor**passed
    # The fraction of the run that is done after this step: the last step uses exactly `final`.
    done = min(1.0, max(0.0, (step + 1 - schedule.warmup) / max(1, steps - schedule.warmup)))
    decay = 1 - done if schedule.name == "linear" else (1 + math.cos(math.pi * done)) / 2
    return warmup * (schedule.final + (1 - schedule.final) * decay)
