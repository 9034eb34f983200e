"""NAME: a kind of average, here the uniform mean that turns into an EMA once its window is full."""

from __future__ import annotations

import math
from dataclasses import dataclass

from emabench.averaging import Profile


@dataclass(frozen=True)
class Average(Profile, kind="NAME"):
    """One rule. Its fields are its options: '+averages.mine={kind: NAME, window: 50}'.

    Every kind also has `start` (updates to wait, or a share of the run) and `every` (change on every so many updates).
    """

    window: float = 100.0  # updates

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.window >= 1:
            raise ValueError(f"window={self.window!r}: give a number of updates, at least 1")

    def advance(self, k: int, log_initial_weight: float) -> tuple[float, float]:
        """Change k = 1, 2, … of the average: average ← average + alpha · (θ − average).

        Args:
            k: Which change this is.
            log_initial_weight: The log of the weight that the initial weights had before it.

        Returns:
            alpha, and the log of the weight that is left on the initial weights.
        """
        alpha = max(1 / k, 1 / self.window)
        # The first change replaces the initial weights (alpha = 1), so nothing is left of them.
        return alpha, -math.inf
