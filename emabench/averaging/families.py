"""Profiles whose window grows with training, and the mean of the latest snapshots."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from emabench.averaging._checks import check_count, check_number
from emabench.averaging.profiles import RAW, Profile

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class PowerEMA(Profile, kind="power_ema"):
    """Power-function EMA: θ_t weighs about as t^γ, so the window is a fixed share of training so far.

    Exactly one of sigma_rel, the profile's standard deviation as a share of training, in (0, 12^-½]; gamma ≥ 0
    (0 is the uniform mean); half_life_fraction in (0, 1], the half-life as a share of training so far.
    β_t = (1 − 1/t)^{γ+1} in changes t (Karras et al. 2024, eq. 8 and appendix C); counted in changes,
    (1 − every/t)^{γ+1} in updates, the profile is the same at any `every`. half_life_fraction f takes torchtitan's
    β_t = 2^(−1/(f·t)) from its second change on (its default f is 0.05), which is the power profile of
    γ = ln 2/f − 1 but for terms of 1/t².
    """

    keeps_snapshots: ClassVar[bool] = True

    sigma_rel: float | None = None
    gamma: float | None = None
    half_life_fraction: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {n: getattr(self, n) for n in ("sigma_rel", "gamma", "half_life_fraction")}
        if sum(value is not None for value in given.values()) != 1:
            got = ", ".join(f"{n}={value!r}" for n, value in given.items() if value is not None)
            raise ValueError(
                f"a power EMA takes exactly one of sigma_rel, gamma and half_life_fraction; got {got or 'none of them'}"
            )
        if self.sigma_rel is not None:
            right = "a share of training in (0, 0.2887), like 0.1"
            check_number("sigma_rel", self.sigma_rel, 0.0, 12**-0.5, right, low_open=True)
        if self.gamma is not None:
            check_number("gamma", self.gamma, 0.0, math.inf, "a number of at least 0", high_open=True)
        if self.half_life_fraction is not None:
            right = "a share of training in (0, 1], like 0.05"
            check_number("half_life_fraction", self.half_life_fraction, 0.0, 1.0, right, low_open=True)

    @property
    def exponent(self) -> float:
        """γ, however the profile was given."""
        if self.half_life_fraction is not None:
            return math.log(2.0) / self.half_life_fraction - 1.0
        return self.gamma if self.gamma is not None else gamma_of(self.sigma_rel or 0.0)

    def advance(self, k: int, log_initial_weight: float) -> tuple[float, float]:
        shrink = -1.0 / k if self.half_life_fraction is not None else math.log1p(-1.0 / k) if k > 1 else 0.0
        log_decay = (self.exponent + 1.0) * shrink if k > 1 else -math.inf
        return -math.expm1(log_decay), -math.inf

    def alphas(self, n: int) -> np.ndarray:
        import numpy as np

        k = np.arange(2.0, n + 1.0)
        shrink = -1.0 / k if self.half_life_fraction is not None else np.log1p(-1.0 / k)
        return np.append(np.ones(min(1, n)), -np.expm1((self.exponent + 1.0) * shrink))


def sigma_rel_of(gamma: float) -> float:
    """Relative standard deviation of the profile t^γ on [0, 1] (Karras et al. 2024, appendix C)."""
    return math.sqrt(gamma + 1.0) / (gamma + 2.0) / math.sqrt(gamma + 3.0)


@functools.cache
def gamma_of(sigma_rel: float) -> float:
    """The γ ≥ 0 whose profile has this relative standard deviation, by bisection (σ_rel falls with γ)."""
    low, high = 0.0, 1.0
    while sigma_rel_of(high) > sigma_rel:
        high *= 2.0
    for _ in range(200):
        middle = (low + high) / 2.0
        low, high = (middle, high) if sigma_rel_of(middle) > sigma_rel else (low, middle)
    return (low + high) / 2.0


@dataclass(frozen=True)
class SqrtEMA(Profile, kind="sqrt_ema"):
    """β_t = 1 − 1/√(t + 1), eq. (108), from the initial weights: the window is √t, for streams.

    With every=m a change keeps the product of the decays of its m updates.
    """

    @property
    def from_initial(self) -> bool:
        return True

    def advance(self, k: int, log_initial_weight: float) -> tuple[float, float]:
        last = k * self.every
        log_decay = math.fsum(
            math.log1p(-((t + 1.0) ** -0.5)) for t in range(last - self.every + 1, last + 1)
        )
        return -math.expm1(log_decay), log_initial_weight + log_decay


@dataclass(frozen=True)
class LAWA(Profile, kind="lawa"):
    """LAtest Weight Averaging (Kaddour 2022): the uniform mean of the `k` latest snapshots, one every `every`.

    Not the article's §5.3, which gives the name to eq. (26); that is `ArticleEq26`. Keeps k copies of the weights.
    """

    k: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("k", self.k, 1)

    @property
    def sets(self) -> int:
        return self.k

    @property
    def is_its_set(self) -> bool:
        return self.k == 1

    def read(self, t: int) -> dict[int | str, float]:
        taken = self.sets_in_use(t)
        return dict.fromkeys(range(taken), 1.0 / taken) if taken else {RAW: 1.0}

    def advance(self, k: int, log_initial_weight: float) -> tuple[float, float]:
        return 1.0, -math.inf

    def weights(self, T: int) -> np.ndarray:
        import numpy as np

        check_count("T", T, 0)
        self._require_bound()
        given = np.zeros(T + 1)
        done = self.updates_done(T)
        if not done:
            given[T] = 1.0
            return given
        taken = min(self.k, done)
        given[[int(self.start) + (done - i) * self.every for i in range(taken)]] = 1.0 / taken
        return given
