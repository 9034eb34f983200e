"""Combining several averages of one training (eq. 39)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from emabench.averaging._checks import check_number
from emabench.averaging.profiles import Profile

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Mixture(Profile, kind="mixture"):
    """Σ w_i · average_i with weights that sum to 1; `of` maps names of other averages ("raw" too) to weights.

    Costs nothing while training: it is put together when it is asked for.
    """

    of: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.of, Mapping) or not self.of:
            raise ValueError(f"of={self.of!r}: give a mapping from names of averages to their weights")
        for name, weight in self.of.items():
            check_number(f"of.{name}", weight, -math.inf, math.inf, "a number")
        if abs(math.fsum(self.of.values()) - 1.0) > 1e-6:
            raise ValueError(
                f"of={dict(self.of)!r}: the weights sum to {math.fsum(self.of.values())}, they must to 1"
            )
        if self.start != 0 or self.every != 1:
            raise ValueError("a mixture has no start and no every of its own: its parts have")

    @property
    def sets(self) -> int:
        return 0

    @property
    def combines(self) -> tuple[str, ...]:
        return tuple(self.of)

    def read(self, t: int) -> dict[int | str, float]:
        return {name: float(weight) for name, weight in self.of.items()}

    def sets_in_use(self, t: int) -> int:
        return 0

    def updates_done(self, t: int) -> int:
        return 0

    def started(self, t: int) -> bool:
        return True

    def weights(self, T: int) -> np.ndarray:
        raise ValueError("the weights of a mixture follow from its parts: ask Averager.weights(name, T)")
