"""Averages that imitate a decay of the learning rate which training did not make.

θ_s = θ_n + Σ_{i ≤ s} u_i are the weights along a training at a constant learning rate, u_i its steps. Had the last
steps been made smaller by factors f_i, the weights would be (to first order, with the steps otherwise unchanged)
θ_n + Σ f_i u_i = Σ_j c_j θ_{n+j} with c_j = f_j − f_{j+1}: an average whose weights are the differences of the schedule
(Tian et al. 2025, WSM, arXiv 2507.17634, theorem 3.1; Sandler et al. 2023 for constant f).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from emabench.averaging._checks import check_choice, check_count, check_fraction_or_count, check_number
from emabench.averaging.profiles import Profile, _known

SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: 1.0 - x,
    "cosine": lambda x: (1.0 + math.cos(math.pi * x)) / 2.0,
    "1-sqrt": lambda x: 1.0 - math.sqrt(x),
}
"""By name, the factor of the learning rate at share x of the decay, from 1 at x = 0 to 0 at x = 1."""


def factor(schedule: str | Sequence[float], x: float) -> float:
    """The factor of the learning rate at share x in [0, 1) of the decay, 0 from x = 1 on."""
    if x >= 1.0:
        return 0.0
    if isinstance(schedule, str):
        return SCHEDULES[schedule](x)
    at = x * (len(schedule) - 1)
    left = int(at)
    return float(schedule[left]) + (at - left) * (float(schedule[left + 1]) - float(schedule[left]))


def merge_weights(schedule: str | Sequence[float], checkpoints: int) -> list[float]:
    """The weights c_1 … c_n, sum 1, that merge n checkpoints, oldest first, into what the decay would have given.

    schedule: "linear" (the uniform mean), "cosine", "1-sqrt", or factors at equal distances, the first 1.
    c_j = f((j − 1)/n) − f(j/n): the step to checkpoint j is made with the factor at its beginning.
    """
    check_count("checkpoints", checkpoints, 1)
    f = [factor(schedule, j / checkpoints) for j in range(checkpoints + 1)]
    return [a - b for a, b in itertools.pairwise(f)]


def _factors(schedule: Sequence[float]) -> tuple[float, ...]:
    factors = tuple(schedule) if isinstance(schedule, Sequence) else ()
    for value in factors:
        check_number("schedule", value, 0.0, 1.0, "factors of the learning rate in [0, 1]")
    if len(factors) < 2 or factors[0] != 1.0 or any(a < b for a, b in itertools.pairwise(factors)):
        raise ValueError(
            f"schedule={schedule!r}: give {', '.join(map(repr, SCHEDULES))} or at least two factors of the learning "
            "rate that fall from 1, like [1, 0.5, 0]"
        )
    return factors


@dataclass(frozen=True)
class Annealing(Profile, kind="annealing"):
    """The average that imitates a learning rate decayed over the `last` part of the run.

    schedule: "linear", "cosine", "1-sqrt", or a list of factors of the learning rate at equal distances, from 1 at
        the beginning of the decay; [1, 1, 0] stays for half of it and then falls linearly. A trapezoid's (WSD's)
        tail is "linear", and is then the uniform mean of the last part.
    last: how long the decay is, in updates or as a share of the run in (0, 1).
    end: the update at which it ends; `bound` makes it the end of the run. The average is what it is meant to be at
        `end`; before, it is that of the checkpoints so far, and after, it stays.

    With every=m it is WSM's merge of the checkpoints of every m updates (arXiv 2507.17634). `start` follows from
    `last` and `end`.
    """

    schedule: str | Sequence[float] = "1-sqrt"
    last: int | float = 0.2
    end: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.schedule, str):
            check_choice("schedule", self.schedule, SCHEDULES)
        else:
            object.__setattr__(self, "schedule", _factors(self.schedule))
        check_fraction_or_count("last", self.last, zero=False)
        if self.end is not None:
            check_count("end", self.end, 1)
        if self.unbound():
            if self.start:
                raise ValueError(
                    f"start={self.start}: an annealing begins `last` before `end`; leave start out"
                )
            return
        assert self.end is not None
        begin = self.end - int(self.last)
        if begin < 0 or self.last < self.every:
            raise ValueError(
                f"last={self.last}, end={self.end}, every={self.every}: the decay is at least `every` long and at most `end`"
            )
        if self.start not in (0, begin):
            raise ValueError(
                f"start={self.start}: an annealing of last={self.last} begins at {begin}; leave start out"
            )
        object.__setattr__(self, "start", begin)

    @property
    def checkpoints(self) -> int:
        """How many sets of weights the finished average is made of."""
        return int(self.last) // self.every

    def advance(self, k: int, log_initial_weight: float) -> tuple[float, float]:
        if k > self.checkpoints:
            return 0.0, -math.inf
        before, after = (
            factor(self.schedule, (k - 1) / self.checkpoints),
            factor(self.schedule, k / self.checkpoints),
        )
        total = 1.0 - after  # of the weights c_1 … c_k
        return ((before - after) / total if total else 1.0), -math.inf  # no decay yet: the current weights

    def bound(
        self, *, steps: int | None = None, batch_size: int | None = None, steps_per_epoch: float | None = None
    ) -> Self:
        if not self.unbound():
            return self
        end = self.end or int(_known("last", self.last, "steps", steps))
        last = self.last if self.last >= 1 else max(self.every, round(self.last * end))
        return replace(self, end=end, last=int(last))

    def unbound(self) -> str:
        return f"last={self.last}" if self.end is None or self.last < 1 else ""
