"""Ramps: how an EMA's decay rises to its final value over the first updates.

Every ramp is a function β_t of the update number t = 1, 2, … counted from the average's start. `steps` is its
scale in updates; each shape below says what it does with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from emabench.averaging._checks import check_choice, check_fraction_or_count, check_number, check_options


def _linear(t: int, beta: float, w: Warmup) -> float:
    """Linear in β (eq. 36, 115); the window stays short for almost the whole ramp."""
    return min(beta, w.initial + t / w.steps * (beta - w.initial))


def _log(t: int, beta: float, w: Warmup) -> float:
    """Linear in log(1 − β): the window grows by the same factor every update."""
    x = min(1.0, t / w.steps)
    return 1.0 - math.pow(1.0 - w.initial, 1.0 - x) * math.pow(1.0 - beta, x)


def _ratio(t: int, beta: float, w: Warmup) -> float:
    """min(β, (1+t)/(steps+t)), which caps the window at about t/9.

    With steps=10 it is latent diffusion's LitEma, and with start=1 as well diffusers' EMAModel(use_ema_warmup=False),
    which takes the weights after the first update whole.
    """
    return min(beta, (1.0 + t) / (w.steps + t))


def _power(t: int, beta: float, w: Warmup) -> float:
    """min(β, 1 − (1 + t/steps)^−power).

    With start=1 it is the ramp of diffusers' EMAModel(use_ema_warmup=True), of timm's ModelEmaV3(use_warmup=True) given
    the number of each update, and of ema-pytorch's EMA(update_every=1, update_after_step=0), all of which take the
    weights after the first update whole; `steps` is their inv_gamma or warmup_gamma. (At other values of update_every
    ema-pytorch does not compound the decay, and no profile here equals it.)
    """
    return min(beta, 1.0 - math.pow(1.0 + t / w.steps, -w.power))


def _exponential(t: int, beta: float, w: Warmup) -> float:
    """β (1 − e^{−t/steps}), YOLOv5's ramp (τ is steps)."""
    return beta * -math.expm1(-t / w.steps)


def _cosine(t: int, beta: float, w: Warmup) -> float:
    """β − (β − initial)(1 + cos πt/steps)/2: eq. 35 turned so that it rises (BYOL, Grill et al. 2020)."""
    x = min(1.0, t / w.steps)
    return beta - (beta - w.initial) * (1.0 + math.cos(math.pi * x)) / 2.0


def _two_phase(t: int, beta: float, w: Warmup) -> float:
    """`initial` for the first `steps` updates, β after (Mean Teacher: .99, then .999)."""
    return w.initial if t <= w.steps else beta


def _article_eq35(t: int, beta: float, w: Warmup) -> float:
    """Eq. 35 as printed: it FALLS from β to `initial` over `steps`, against its purpose."""
    x = min(1.0, t / w.steps)
    return w.initial + (beta - w.initial) * (1.0 + math.cos(math.pi * x)) / 2.0


SHAPES: dict[str, Callable[[int, float, Warmup], float]] = {
    "linear": _linear,
    "log": _log,
    "ratio": _ratio,
    "power": _power,
    "exponential": _exponential,
    "cosine": _cosine,
    "two_phase": _two_phase,
    "article_eq35": _article_eq35,
}


@dataclass(frozen=True)
class Warmup:
    """A ramp of the decay: `shape` (one of SHAPES), its scale `steps` in updates, the decay it starts from.

    `steps` strictly between 0 and 1 is a share of the run, made a number of updates by `bound(steps=…)`.
    `min_decay` is a floor: the decay is never below it (diffusers' and ema-pytorch's `min_decay`, `min_value`).
    `initial` serves linear, log, cosine, two_phase and article_eq35; `power` serves power.
    Raises ValueError for an unknown shape, steps ≤ 0, initial outside [0, 1) or power ≤ 0.
    """

    shape: str = "linear"
    steps: float = 10.0
    initial: float = 0.0
    power: float = 2.0 / 3.0
    min_decay: float = 0.0

    def __post_init__(self) -> None:
        check_choice("warmup.shape", self.shape, SHAPES)
        check_fraction_or_count("warmup.steps", self.steps, zero=False)
        check_number("warmup.initial", self.initial, 0.0, 1.0, "a decay in [0, 1)", high_open=True)
        check_number("warmup.min_decay", self.min_decay, 0.0, 1.0, "a decay in [0, 1)", high_open=True)
        check_number("warmup.power", self.power, 0.0, math.inf, "a number above 0", low_open=True)

    @classmethod
    def of(cls, value: Warmup | Mapping[str, Any] | float | str | None) -> Warmup | None:
        """A ramp from what a configuration holds: a number of updates (linear), a shape's name, a mapping."""
        if value is None or isinstance(value, Warmup):
            return value
        if isinstance(value, str):
            return cls(shape=value)
        if isinstance(value, Mapping):
            check_options("warmup", value, [f.name for f in fields(cls)])
            return cls(**value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(
                f"warmup={value!r}: give a number of updates, a shape ({', '.join(SHAPES)}) or a mapping "
                "{shape, steps, initial, power}"
            )
        return cls(steps=value) if value else None

    def decay(self, t: int, beta: float) -> float:
        """The decay of update t ≥ 1 of an EMA whose final decay is `beta`."""
        return min(max(SHAPES[self.shape](t, beta, self), self.min_decay), 1.0 - 2.0**-53)

    @property
    def relative(self) -> bool:
        """Whether `steps` is a share of the run."""
        return 0 < self.steps < 1

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `Warmup.of` takes back."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return plain if self.min_decay else {k: v for k, v in plain.items() if k != "min_decay"}
