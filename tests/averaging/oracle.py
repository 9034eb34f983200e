"""The weights of every past step from each average's definition, written without the package's own arithmetic.

An EMA with decays b_1 … b_n over local steps 1 … n gives step s the weight (1 − b_s) b_{s+1} … b_n and its start
b_1 … b_n. A profile that acts every m steps sees only steps m, 2m, …, and keeps the product of the m decays between.
"""

from __future__ import annotations

import math

import numpy as np

from emabench.averaging import (
    BEMA,
    EMA,
    LAWA,
    Annealing,
    EMAOfEMA,
    Mean,
    PowerEMA,
    SqrtEMA,
    TailBlend,
)


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
    if isinstance(profile, (BEMA, Annealing, TailBlend, EMAOfEMA)):
        return simulated(profile, T)
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
        if profile.half_life_fraction is None:
            b = [(1 - 1 / k) ** (profile.exponent + 1) for k in range(1, len(seen) + 1)]
        else:
            b = [0.0] + [2 ** (-1 / (profile.half_life_fraction * k)) for k in range(2, len(seen) + 1)]
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


def simulated(profile, T):
    """The algorithm as its paper writes it, run on weights that are the unit vectors of time."""
    theta = np.eye(T + 1)
    n, m, start = T - profile.start, profile.every, profile.start
    seen = [start + s for s in range(m, n + 1, m)]
    if isinstance(profile, Annealing):
        return annealed(profile, theta, seen)
    if n < 0 or (not seen and getattr(profile, "debias", False)):
        return theta[T]
    if isinstance(profile, BEMA):
        ema = theta[start]
        for t in seen:
            b = min(1, 1 / (profile.lag + profile.multiplier * (t - start)) ** profile.ema_power)
            ema = (1 - b) * ema + b * theta[t]
        a = 1 / (profile.lag + profile.multiplier * n) ** profile.bias_power if seen else 0
        return ema + a * (theta[T] - theta[start])
    first = decays(profile, n)
    second = (
        first
        if getattr(profile, "second", None) is None
        else decays(EMA(profile.second, warmup=profile.warmup), n)
    )
    zero = 0 * theta[0]
    one, two = (zero, zero) if profile.debias else (theta[start], theta[start])
    kept_one = kept_two = 1.0
    for k, t in enumerate(seen):
        b, c = (math.prod(each[k * m : (k + 1) * m]) for each in (first, second))
        kept_one, kept_two = kept_one * b, kept_two * c
        one = b * one + (1 - b) * theta[t]
        shown = one / (1 - kept_one) if profile.debias else one
        two = c * two + (1 - c) * shown
    if isinstance(profile, TailBlend):
        return profile.weight * (shown if seen else one) + (1 - profile.weight) * theta[T]
    return two / (1 - kept_two) if profile.debias else two


def annealed(profile, theta, seen):
    """Each step from checkpoint to checkpoint made as long as the schedule says, from the beginning of the decay."""
    K = profile.last // profile.every
    if not seen:
        return theta[-1]
    shapes = {
        "linear": lambda x: 1 - x,
        "cosine": lambda x: math.cos(x * math.pi) / 2 + 0.5,
        "1-sqrt": lambda x: 1 - x**0.5,
    }
    f = shapes.get(profile.schedule) if isinstance(profile.schedule, str) else None
    if f is None:
        f = lambda x: float(np.interp(x, np.linspace(0, 1, len(profile.schedule)), profile.schedule))  # noqa: E731
    seen = seen[:K]
    factors = [f(j / K) for j in range(K)] + [0.0]
    if len(seen) < K:  # not over yet: the weights of the checkpoints so far, brought to sum 1
        c = np.array([factors[j] - factors[j + 1] for j in range(len(seen))])
        return (
            theta[seen[-1]]
            if not c.sum()
            else sum(w * theta[t] for w, t in zip(c / c.sum(), seen, strict=True))
        )
    at = theta[profile.start]
    result, before = at, at
    for j, t in enumerate(seen):
        result, before = result + factors[j] * (theta[t] - before), theta[t]
    return result
