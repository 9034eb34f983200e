"""The weights of every past step from each average's definition, written without the package's own arithmetic.

An EMA with decays b_1 … b_n over local steps 1 … n gives step s the weight (1 − b_s) b_{s+1} … b_n and its start
b_1 … b_n. A profile that acts every m steps sees only steps m, 2m, …, and keeps the product of the m decays between.
"""

from __future__ import annotations

import math

import numpy as np

from emabench.averaging import EMA, LAWA, Mean, PowerEMA, SqrtEMA


def decays(profile, n):
    """The decay of each of n steps (not acts)."""
    if isinstance(profile, SqrtEMA):
        return [1 - 1 / math.sqrt(t + 1) for t in range(1, n + 1)]
    if profile.decay is not None:
        beta = profile.decay
    elif profile.half_life is not None:
        beta = 2.0 ** (-1.0 / profile.half_life)
    else:
        beta = 1 - 1 / profile.window
    w = profile.warmup
    if w is None:
        return [beta] * n
    shapes = {
        "linear": lambda t: min(beta, w.initial + (beta - w.initial) * t / w.steps),
        "log": lambda t: 1 - (1 - w.initial) * ((1 - beta) / (1 - w.initial)) ** min(1, t / w.steps),
        "ratio": lambda t: min(beta, (1 + t) / (w.steps + t)),
        "power": lambda t: min(beta, 1 - 1 / (1 + t / w.steps) ** w.power),
        "exponential": lambda t: beta * (1 - math.exp(-t / w.steps)),
        "cosine": lambda t: beta - (beta - w.initial) * (1 + math.cos(math.pi * min(1, t / w.steps))) / 2,
        "two_phase": lambda t: w.initial if t <= w.steps else beta,
        "article_eq35": lambda t: (
            w.initial + (beta - w.initial) * (1 + math.cos(math.pi * min(1, t / w.steps))) / 2
        ),
    }
    return [max(0.0, shapes[w.shape](t)) for t in range(1, n + 1)]


def weights(profile, T):
    """Weight of θ_0 … θ_T."""
    out = np.zeros(T + 1)
    n, m = T - profile.start, profile.every
    seen = [profile.start + s for s in range(m, n + 1, m)]  # the steps it acted on
    if (
        n < 0
        or (not seen and not isinstance(profile, (EMA, SqrtEMA)))
        or (not seen and getattr(profile, "debias", False))
    ):
        out[T] = 1.0
    elif isinstance(profile, Mean):
        for s in seen:
            out[s] = 1 / len(seen)
    elif isinstance(profile, LAWA):
        for s in seen[-profile.k :]:
            out[s] = 1 / len(seen[-profile.k :])
    elif isinstance(profile, PowerEMA):
        b = [(1 - 1 / k) ** (profile.exponent + 1) for k in range(1, len(seen) + 1)]
        for k, s in enumerate(seen):
            out[s] = (1 - b[k]) * math.prod(b[k + 1 :])
    else:
        each = decays(profile, n)
        b = [math.prod(each[k * m : (k + 1) * m]) for k in range(len(seen))]
        for k, s in enumerate(seen):
            out[s] = (1 - b[k]) * math.prod(b[k + 1 :])
        if getattr(profile, "debias", False):
            out /= 1 - math.prod(b)
        else:
            out[profile.start] += math.prod(b)
    return out
