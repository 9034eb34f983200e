"""Averages that are read as a combination: of an EMA with the current or the initial weights, or of another EMA."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from emabench.averaging._checks import check_number
from emabench.averaging.mixture import Mixture
from emabench.averaging.profiles import EMA, RAW, GradientNorms, Profile, Step, Stepper

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class BEMA(Profile, kind="bema"):
    """Bias-corrected EMA (Block and Zhang 2025, arXiv 2508.00180, algorithm 1): an EMA without its lag.

    After t updates since `start`, with m_t the EMA and θ_s the weights at `start`:

        m_t = (1 − b_t) m_{t−1} + b_t θ_t,  b_t = (lag + multiplier·t)^−ema_power
        BEMA_t = m_t + a_t (θ_t − θ_s),     a_t = (lag + multiplier·t)^−bias_power

    The defaults are those of the paper's code in TRL. With every=m the EMA takes every m-th of the weights, t
    still counts all (the paper's update frequency), and θ_t are the current weights whenever it is read. Keeps
    two sets of weights.
    """

    ema_power: float = 0.5
    bias_power: float = 0.2
    lag: float = 10.0
    multiplier: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("ema_power", self.ema_power, 0.0, 1.0, "a power in [0, 1], like 0.5")
        check_number("bias_power", self.bias_power, 0.0, math.inf, "a power of at least 0, like 0.2")
        check_number("lag", self.lag, 1.0, math.inf, "a number of at least 1, like 10", high_open=True)
        right = "a number above 0, like 1"
        check_number("multiplier", self.multiplier, 0.0, math.inf, right, low_open=True, high_open=True)

    @property
    def from_initial(self) -> bool:
        return True

    @property
    def sets(self) -> int:
        return 2

    def stepper(self, names: Sequence[str]) -> Stepper:
        return _BEMAStepper(self, (self,), [0] * len(names))

    def sets_in_use(self, t: int) -> int:
        return 2 if self.started(t) else 0

    def advance(self, k: int, log_initial_weight: float) -> tuple[float, float]:
        share = min(1.0, (self.lag + self.multiplier * k * self.every) ** -self.ema_power)
        return share, log_initial_weight + (math.log1p(-share) if share < 1.0 else -math.inf)

    def correction(self, t: int) -> float:
        """a_t after t updates in all; 0 until the average has changed."""
        since = t - int(self.start)
        return (self.lag + self.multiplier * since) ** -self.bias_power if self.updates_done(t) else 0.0

    def read(self, t: int) -> dict[int | str, float]:
        a = self.correction(t)
        return ({0: 1.0, RAW: a, 1: -a} if a else {0: 1.0}) if self.started(t) else {RAW: 1.0}

    def weights(self, T: int) -> np.ndarray:
        given = super().weights(T)
        a = self.correction(T)
        given[T] += a
        given[int(self.start) if self.started(T) else T] -= a
        return given


class _BEMAStepper(Stepper):
    """Set 0 is the EMA, set 1 the weights at `start`, which stay."""

    def initial_copies(self, t: int) -> list[int]:
        return [0, 1] if self.profile.start == t else []

    def step(self, k: int, gradient_norms: GradientNorms) -> list[Step]:
        [move] = super().step(k, gradient_norms)
        return [Step(0, move.alphas)]


@dataclass(frozen=True)
class TailBlend(EMA, kind="tail_blend"):
    """(1 − weight)·θ + weight·EMA, the EMA started late: modded-nanogpt's Tail-EMA (its pull requests 325, 364).

    weight: of the EMA, in [0, 1]; their 0.6 with window=150 and start=2400 of 2730. Everything else as for an EMA.
    In a configuration `weight` may be a list: one EMA is kept, and a blend for each weight is read from it.
    """

    weight: float = field(default=0.5, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("weight", self.weight, 0.0, 1.0, "the weight of the EMA in [0, 1], or a list of them")

    @property
    def is_its_set(self) -> bool:
        return self.weight == 1.0

    def read(self, t: int) -> dict[int | str, float]:
        if not self.started(t) or self.weight == 0.0:
            return {RAW: 1.0}
        return {0: 1.0} if self.weight == 1.0 else {0: self.weight, RAW: 1.0 - self.weight}

    def weights(self, T: int) -> np.ndarray:
        given = self.weight * super().weights(T)
        given[T] += 1.0 - self.weight
        return given

    @classmethod
    def expand(cls, name: str, options: Mapping[str, Any]) -> dict[str, Profile]:
        weight = options.get("weight")
        if not isinstance(weight, (list, tuple)):
            return super().expand(name, options)
        rest = {key: value for key, value in options.items() if key not in ("kind", "weight")}
        blends: dict[str, Profile] = {name: EMA(**rest)}
        for one in weight:
            checked = replace(cls(**rest), weight=one).weight
            blends[f"{name}_{one:g}"] = Mixture(of={name: checked, RAW: 1.0 - checked})
        return blends


@dataclass(frozen=True)
class EMAOfEMA(EMA, kind="ema_of_ema"):
    """An EMA of an EMA: the first follows the weights, the second, which is the average, follows the first.

    Given as an EMA; `second` is the decay of the second, the first's if left out. Equal decays weigh step T − n by
    (n + 1) β^n (1 − β)²: no jump at the newest weights, twice the mean age. The ramp, `debias` and `every` hold
    for both. Keeps two sets of weights.
    """

    second: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.second is not None:
            check_number("second", self.second, 0.0, 1.0, "a decay in [0, 1), like 0.99", high_open=True)

    @property
    def sets(self) -> int:
        return 2

    @property
    def needs_compensation(self) -> bool:
        return False  # it cannot be compensated

    def _chain(self) -> tuple[EMA, EMA]:
        shared = {"start": self.start, "every": self.every, "debias": self.debias, "warmup": self.warmup}
        first = EMA(self.decay, self.half_life, self.window, self.share, unit=self.unit, **shared)  # type: ignore[arg-type]
        return first, first if self.second is None else EMA(self.second, **shared)  # type: ignore[arg-type]

    def stepper(self, names: Sequence[str]) -> Stepper:
        return _ChainStepper(self, self._chain(), [0] * len(names))

    def read(self, t: int) -> dict[int | str, float]:
        return {1: 1.0} if self.started(t) else {RAW: 1.0}

    def sets_in_use(self, t: int) -> int:
        return 2 if self.started(t) else 0

    def weights(self, T: int) -> np.ndarray:
        import numpy as np

        first, second = self._chain()
        given = first.weights(T)  # checks T, and is right before the average starts
        if not self.started(T):
            return given
        done, start = self.updates_done(T), int(self.start)
        a, b = first.alphas(done), second.alphas(done)
        given = np.zeros(T + 1)
        on_first, on_second = 0.0, 1.0  # how much of the result each set makes, going back in time
        for k in range(done, 0, -1):
            on_first += b[k - 1] * on_second
            on_second *= 1.0 - b[k - 1]
            given[start + k * self.every] = a[k - 1] * on_first
            on_first *= 1.0 - a[k - 1]
        given[start] += on_first + on_second
        return given


class _ChainStepper(Stepper):
    """Set 0 follows the weights, set 1 follows set 0."""

    def initial_copies(self, t: int) -> list[int]:
        return [0, 1] if self.profile.start == t and self.profile.from_initial else []

    def step(self, k: int, gradient_norms: GradientNorms) -> list[Step]:
        steps = [p.advance(k, log) for p, log in zip(self.components, self.state, strict=True)]
        self.state = [log for _, log in steps]
        (first, _), (second, _) = steps
        n = len(self.component)
        return [Step(0, [first] * n), Step(1, [second] * n, source=0)]
