"""The shared mathematics against simulation and brute force."""

from __future__ import annotations

import numpy as np
import pytest

from emabench.audit.tools import Quadratic, ema, ema_weights
from emabench.averaging.profiles import EMA


@pytest.mark.parametrize(("eta", "beta"), [(0.1, 0.9), (0.1, 0.99), (0.5, 0.3), (0.02, 0.98)])
def test_moments_are_those_of_a_simulation(eta: float, beta: float) -> None:
    q = Quadratic(h=0.7, eta=eta / 0.7, sigma2=2.0, beta=beta, start=3.0)
    rng, T, runs = np.random.default_rng(0), 60, 200_000
    theta = average = np.full(runs, q.start)
    for _ in range(T):
        theta = theta - q.eta * (q.h * theta + rng.normal(scale=np.sqrt(q.sigma2), size=runs))
        average = beta * average + (1 - beta) * theta
    error = 5 * average.std() / np.sqrt(runs)
    assert average.mean() == pytest.approx(q.ema_mean(T), abs=error)
    assert average.var() == pytest.approx(q.ema_variance(T), rel=0.02)
    assert q.h / 2 * (theta**2).mean() == pytest.approx(q.iterate_excess(T), rel=0.02)
    assert q.ema_variance(100_000) == pytest.approx(q.ema_variance(), rel=1e-6)
    assert q.ema_variance() == pytest.approx(q.factor * q.iterate_variance, rel=1e-6)


def test_weights_are_those_of_the_engine() -> None:
    T = 40
    assert ema_weights([0.93] * T) == pytest.approx(EMA(decay=0.93).weights(T))
    theta = np.random.default_rng(1).normal(size=T + 1)
    assert ema(theta[1:], 0.93, theta[0])[-1] == pytest.approx(EMA(decay=0.93).weights(T) @ theta)
