"""Unit analysis: both sides of a formula as the units of loss, weights and time are changed.

A side that is consistent scales as a power of each unit; a sum of different units does not. Numbers without a unit
(β, T, a count) keep their value. Left out are (46), whose O(…) hides them, (59), which is words, and (102), which
sets a number of parameters equal to memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Units:
    """A loss, a distance of weights, a time (of a step) and an output, each one unit large."""

    loss: float = 1.0
    w: float = 1.0
    time: float = 1.0
    output: float = 1.0

    @property
    def gradient(self) -> float:
        return self.loss / self.w

    @property
    def h(self) -> float:
        """A curvature, a smoothness or a strong convexity."""
        return self.loss / self.w**2

    @property
    def eta(self) -> float:
        """A learning rate; also the unit of s = ηt."""
        return self.w**2 / self.loss

    @property
    def s2(self) -> float:
        """A variance of gradients."""
        return self.gradient**2

    @property
    def f(self) -> float:
        """A frequency, a rate per time."""
        return 1 / self.time


Side = Callable[[Units], float]
NAMES = ("loss", "weight", "time", "output")
_weights: tuple[Side, Side] = (lambda u: u.w, lambda u: 0.9 * u.w + 0.1 * u.w)
_variance: tuple[Side, Side] = (lambda u: u.w**2, lambda u: 0.05 * u.w**2)
_numbers: tuple[Side, Side] = (lambda u: 1.0, lambda u: 0.9 + 0.1)

SIDES: dict[str, tuple[Side, Side]] = {
    **dict.fromkeys(
        ["1", "2", "3", "4", "5", "12", "24", "27", "28", "29", "31", "38", "39", "56", "70", "91", "96", "98", "99",
         "100", "101", "103", "104", "105", "107"], _weights),
    **dict.fromkeys(["9", "10", "11", "33", "49", "50", "51", "71", "72", "73", "77"], _variance),
    **dict.fromkeys(
        ["6", "7", "14", "16", "19", "34", "35", "36", "67", "69", "95", "97", "108", "109", "112", "114", "115"], _numbers),
    "8": (lambda u: u.w**2, lambda u: u.eta**2 * 10 * u.s2),
    "13": (lambda u: u.loss, lambda u: (u.loss + u.loss) / 2),
    "15": (lambda u: 1.0, lambda u: u.s2 * u.h / (u.gradient * u.h * u.gradient)),
    "17": (lambda u: u.eta, lambda u: u.eta * min(0.5, 1)),
    "18": (lambda u: u.loss, lambda u: u.loss + math.sqrt((1 + math.log(20)) / 100)),
    "20": (lambda u: u.output**2, lambda u: (u.output - 0.5 * u.output) ** 2),
    "21": (lambda u: u.output**2, lambda u: 0.05 * u.output**2),
    "22": (lambda u: 1.0, lambda u: u.loss / (1 + u.loss)),
    "23": (lambda u: u.loss / (1 + u.loss), lambda u: u.loss / (1 + u.loss)),
    "25": (lambda u: u.w, lambda u: u.w - 0.1 * u.eta * u.gradient),
    "26": (lambda u: 1.0, lambda u: math.exp(-u.gradient / (u.gradient + u.gradient))),
    "30": (lambda u: u.loss, lambda u: u.loss + 0.5 * u.loss),
    "32": (lambda u: u.loss, lambda u: (1 - u.h * u.eta / 4) * u.loss + u.eta * u.s2 / (2 * u.h)),
    "37": (lambda u: 1.0, lambda u: 1 - 0.1 / math.sqrt(1 + u.gradient**2)),
    "40": (lambda u: u.loss, lambda u: u.loss + u.h * u.w**2 + u.h * u.w**2),
    "41": (lambda u: u.loss, lambda u: u.eta**2 * u.s2 + 2 * u.h * u.w**2),
    "42": (lambda u: u.loss, lambda u: u.eta**2 * u.s2 + u.h * u.w**2),
    "43": (lambda u: u.loss, lambda u: u.eta**2 * u.s2 + u.h * u.w**2),
    "44": (lambda u: 1.0, lambda u: 1 - 0.1 * (u.h * u.w**2 / (u.eta**2 * u.s2)) ** 0.25),
    "45": (lambda u: u.loss, lambda u: math.sqrt(u.h * u.w**2 / (u.eta**2 * u.s2))),
    "47": (lambda u: u.gradient**2, lambda u: u.h * u.loss + 4 * u.h * u.eta**2 * u.s2),
    "48": (lambda u: 1.0, lambda u: u.h * u.loss / u.gradient**2),
    "52": (lambda u: u.w**2, lambda u: u.w**2 - 0.1 * u.eta * u.w * u.gradient + u.eta**2 * u.s2),
    "53": (lambda u: u.w * u.gradient, lambda u: u.loss + u.h * u.w**2 / 2),
    "54": (lambda u: u.w**2, lambda u: 0.9 * u.w**2 + u.eta**2 * u.s2),
    "55": (lambda u: u.w**2, lambda u: (1 - 0.1 * u.h * u.eta) * u.w**2),
    "57": (lambda u: u.loss, lambda u: (1 - 0.1 * u.h * u.eta) + u.eta**2 * u.s2 / u.h),
    "58": (lambda u: u.loss, lambda u: u.eta**2 * u.s2 / (2 * u.h)),
    "60": (lambda u: 1.0, lambda u: -math.log(0.1 * u.eta**2 * u.s2) / (u.eta * u.h)),
    "61": (lambda u: u.w / u.time, lambda u: 0.1 * u.f * u.w - 0.05 * u.f * u.w),
    "62": (lambda u: u.f * u.w, lambda u: 0.1 * u.f * (u.w - 0.5 * u.w)),
    "63": (lambda u: 1.0, lambda u: 0.1 * u.f / (0.1 * u.f + u.f)),
    "64": (lambda u: 1.0, lambda u: 0.1 * u.f / math.hypot(0.1 * u.f, u.f)),
    "65": (lambda u: u.f, lambda u: 0.1 * u.f / 6.28),
    "66": (lambda u: 1.0, lambda u: math.atan(u.f / (0.1 * u.f))),
    "68": (lambda u: 1.0, lambda u: 0.1 * u.f / (6.28 * u.f)),
    "74": (lambda u: 1.0, lambda u: 1 / (1 + u.f * u.time)),
    "75": (lambda u: 1.0, lambda u: 0.1 * u.f / (0.1 * u.f + u.f)),
    "76": (lambda u: u.time, lambda u: 1 / (0.1 * u.f)),
    "78": (lambda u: u.w**2 * u.time, lambda u: u.w**2 * u.time * math.exp(-u.f / u.f)),
    "79": (lambda u: 1.0, lambda u: u.w**2 * u.time / (u.w**2 * u.time + u.w**2 * u.time * math.sqrt(u.f))),
    "80": (lambda u: u.w, lambda u: u.w - 0.1 * u.eta * u.gradient),
    "81": (lambda u: u.w, lambda u: u.gradient * u.eta + math.sqrt(2 * u.eta * u.s2) * math.sqrt(u.eta)),
    "82": (lambda u: u.w, lambda u: u.gradient * u.eta + math.sqrt(2 * u.eta * u.s2) * math.sqrt(u.eta)),
    "83": (lambda u: u.w, lambda u: u.w / (0.1 * u.eta) * u.eta),
    "84": (lambda u: u.w, lambda u: u.gradient * u.eta + math.sqrt(2 * u.loss) * math.sqrt(u.eta)),
    "85": (lambda u: u.w, lambda u: 0.1 * u.w * u.eta),  # the average's line, λ/τ a number
    "86": (lambda u: u.w, lambda u: (u.gradient + u.w / u.eta) * u.eta),
    "87": (lambda u: 1 / (u.w * u.eta), lambda u: u.gradient / u.w**2 + u.loss / u.w**3),
    "88": (lambda u: 1 / u.w, lambda u: math.exp(-u.loss / u.loss) / u.w),
    "89": (lambda u: 1 / (u.w * u.eta), lambda u: u.gradient / u.w**2 + u.loss / u.w**3),
    "90": (lambda u: 1 / u.w**2, lambda u: math.exp(-u.loss / u.loss) / u.w / u.w),
    "93": (lambda u: 1 / u.w, lambda u: 1 / u.w * (1 / u.w) * u.w),
    "92": (lambda u: u.w**2, lambda u: u.eta * u.loss / 0.1),
    "94": (lambda u: u.loss, lambda u: 19 * u.loss),
    "106": (lambda u: u.w, lambda u: u.w - 0.1 * u.eta * u.gradient),
    "110": (lambda u: u.w, lambda u: u.w - 0.1 * u.eta * u.gradient * min(1.0, u.gradient / u.gradient)),
    "111": (lambda u: u.gradient, lambda u: math.sqrt(100)),
    "113": (lambda u: 1.0, lambda u: u.w / u.w),
    "116": (lambda u: u.eta, lambda u: u.eta * min(1, 0.5) * 0.9),
}  # fmt: skip


def dimension(side: Side) -> tuple[float, ...] | None:
    """The powers of loss, weight, time and output that a side scales with; None for a sum of different units."""
    base = side(Units())
    powers = []
    for name in NAMES:
        field = "w" if name == "weight" else name
        twice, four = (side(replace(Units(), **{field: factor})) / base for factor in (2.0, 4.0))
        if min(twice, four) <= 0 or not math.isclose(math.log(four), 2 * math.log(twice), abs_tol=1e-9):
            return None
        powers.append(round(math.log2(twice), 6))
    return tuple(powers)


def units(id: str) -> str:
    """What the unit analysis of an equation says; empty where there is none."""
    if id not in SIDES:
        return ""
    left, right = map(dimension, SIDES[id])
    if right is None or left is None:
        return f"inconsistent: {'the right side' if right is None else 'it'} depends on the units chosen"
    if left != right:
        return f"inconsistent: {_named(left)} on the left, {_named(right)} on the right"
    return f"consistent ({_named(left)})"


def _named(powers: tuple[float, ...]) -> str:
    """Powers in words: "loss² / weight²"."""

    def part(name: str, power: float) -> str:
        exponent = {1.0: "", 2.0: "²", 3.0: "³", 4.0: "⁴"}.get(power, f"^{power:g}")
        return name + exponent

    above = [part(name, p) for name, p in zip(NAMES, powers, strict=True) if p > 0]
    below = [part(name, -p) for name, p in zip(NAMES, powers, strict=True) if p < 0]
    if not above and not below:
        return "a number"
    return " ".join(above or ["1"]) + (f" / {' '.join(below)}" if below else "")
