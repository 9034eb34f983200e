"""Choosing among the averages of one training by a score: greedy soups, and a curve of blends."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from emabench.averaging.mixture import Mixture
from emabench.averaging.profiles import RAW

if TYPE_CHECKING:
    from emabench.averaging.averager import Averager


def greedy(
    averager: Averager, score: Callable[[], float], *, higher: bool = True, names: Sequence[str] | None = None
) -> Mixture:
    """Greedy soup (Wortsman et al. 2022, recipe 1) over the averages of one training.

    averager: its averages `names` (all, and "raw", if not given) are tried from the best alone to the worst; one
        is added to the uniform mean of those chosen when that makes the score no worse.
    score: measures the model with the weights in place, on validation data that no result is reported on; not
        finite counts as worst.
    """

    def measure(of: Mapping[str, float]) -> float:
        with averager.applied(Mixture(of=of)):
            value = score()
        value = value if higher else -value
        return value if math.isfinite(value) else -math.inf

    candidates = [*averager.names, "raw"] if names is None else list(names)
    alone = {name: measure({name: 1.0}) for name in candidates}
    ranked = sorted(candidates, key=lambda name: -alone[name])
    chosen, best = [ranked[0]], alone[ranked[0]]
    for name in ranked[1:]:
        trial = [*chosen, name]
        value = measure(dict.fromkeys(trial, 1.0 / len(trial)))
        if value >= best:
            chosen, best = trial, value
    return Mixture(of=dict.fromkeys(chosen, 1.0 / len(chosen)))


def blend_curve(
    averager: Averager, name: str, score: Any, weights: Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
) -> dict[float, float]:
    """By weight w, `score()` of the model with (1 − w)·θ + w·average `name` in place: a curve from one training."""
    curve = {}
    for w in weights:
        with averager.applied(Mixture(of={name: float(w), RAW: 1.0 - float(w)})):
            curve[float(w)] = score()
    return curve
