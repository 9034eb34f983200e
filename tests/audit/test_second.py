"""Every "wrong" and its corrected form, and some "holds if", derived again by another method than the check's.

Nothing of `emabench.audit.tools` is used: simulation where the check is exact, sums and spectra where it solves an
equation, the engine's profiles and its measured rounding errors, the tables' own files, exact fractions.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import yaml

from emabench.audit import Statement, Verdict, statements
from emabench.audit.sections import listings
from emabench.averaging.profiles import EMA, Mean
from emabench.paths import PACKAGE, conf_dir

EVERY = {each.id: each for each in statements()}
WRONG = {id for id, each in EVERY.items() if each.verdict is Verdict.WRONG}
SECOND: dict[str, Callable[[Statement], None]] = {}


def second(*ids: str) -> Callable[[Callable[[Statement], None]], Callable[[Statement], None]]:
    def keep(derivation: Callable[[Statement], None]) -> Callable[[Statement], None]:
        SECOND.update(dict.fromkeys(ids, derivation))
        return derivation

    return keep


def near(a: float, b: float, tolerance: float = 1e-6) -> bool:
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=1e-12)


def left_on_start(beta: float, t: int) -> float:
    return float(EMA(decay=beta).weights(t)[0])


def simulated(
    eta: float, h: float, beta: float, steps: int, runs: int = 40_000, start: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """SGD on hθ²/2 with unit noise, and its EMA from θ_0: [runs] each after `steps`."""
    rng = np.random.default_rng(3)
    theta = average = np.full(runs, start)
    for _ in range(steps):
        theta = theta - eta * (h * theta + rng.normal(size=runs))
        average = beta * average + (1 - beta) * theta
    return theta, average


def spectral_ratio(beta: float, rho: float) -> float:
    """Var(EMA)/Var(θ) by integrating the spectrum of an AR(1) process through the filter."""
    w = 2 * np.pi * (np.arange(2_000_000) + 0.5) / 2_000_000
    power = (1 - rho**2) / np.abs(1 - rho * np.exp(-1j * w)) ** 2
    return float((power * np.abs((1 - beta) / (1 - beta * np.exp(-1j * w))) ** 2).mean())


def propagated(eta: float, h: float, sigma2: float, beta: float, start: float, T: int) -> tuple[float, float]:
    """E[θ_T²] and E[EMA_T²] by carrying the second moments from step to step."""
    M = np.full((2, 2), start**2)
    A = np.array([[1 - eta * h, 0.0], [(1 - beta) * (1 - eta * h), beta]])
    b = eta * math.sqrt(sigma2) * np.array([1.0, 1 - beta])
    for _ in range(T):
        M = A @ M @ A.T + np.outer(b, b)
    return float(M[0, 0]), float(M[1, 1])


def random_quadratics(count: int, most: float = 1.0) -> list[tuple[float, float, float, float, float, int]]:
    """(η, h, σ², β, start, T)."""
    rng = np.random.default_rng(11)
    made = []
    for _ in range(count):
        h = float(10 ** rng.uniform(-2, 2))
        made.append((float(rng.uniform(0.001, most)) / h, h, float(10 ** rng.uniform(-2, 2)), float(rng.uniform(0, 0.999)), float(rng.normal()), int(rng.integers(1, 200))))  # fmt: skip
    return made


@second("3", "5", "1.2-unbiased")
def _(of: Statement) -> None:
    for beta, t in ((0.9, 1), (0.9, 30), (0.999, 5)):
        taken = 1 - left_on_start(beta, t)  # of a zero start, this much of the average is weights
        assert near(of.right(beta, t), taken)
        assert not near(of.printed(beta, t), taken, 1e-3)


@second("4")
def _(of: Statement) -> None:
    weights = EMA(decay=0.9, debias=True).weights(5)
    first = int(np.flatnonzero(weights)[0])
    assert (of.right, of.printed) == (first, first - 1)


@second("6")
def _(of: Statement) -> None:
    samples = EMA(decay=0.95).describe()["effective_samples"]
    assert near(of.right(0.95), samples)
    assert not near(of.printed(0.95), samples, 0.5)


@second("9")
def _(of: Statement) -> None:
    theta, average = simulated(0.1, 1.0, 0.9, 200)
    w = EMA(decay=0.9).weights(200)[1:]
    age = np.abs(np.subtract.outer(np.arange(200), np.arange(200)))
    C = theta.var() * 0.9**age
    assert near(of.right(w, C), average.var(), 0.04)
    assert of.printed(w, C) < 0.2 * average.var()
    white = np.random.default_rng(5).normal(size=(20_000, 200))  # uncorrelated: the condition that is named
    assert near(of.printed(w, np.eye(200)), float((white @ w).var()), 0.04)


@second("10", "7.1-floor", "11-error")
def _(of: Statement) -> None:
    for beta, rho in ((0.9, 0.9), (0.99, 0.99), (0.95, 0.5)):
        assert near(of.right(beta, rho), spectral_ratio(beta, rho), 1e-4)
        assert not near(of.printed(beta, rho), spectral_ratio(beta, rho), 0.3)
        assert near(of.printed(beta, 0.0), spectral_ratio(beta, 0.0), 1e-4)


@second("2.1-together", "89")
def _(of: Statement) -> None:
    T = 4000
    w = EMA(decay=0.95).weights(T)[1:]
    s = np.arange(1, T + 1)
    ratio = float(w @ np.minimum.outer(s, s) @ w) / T  # Cov of a random walk is min(s, t)
    arguments = (0.95,) if of.id == "89" else (0.95, T)
    assert near(of.right(*arguments), ratio, 0.02)
    assert of.printed(*arguments) < 0.1 * ratio


@second("11")
def _(of: Statement) -> None:
    theta, T, beta = np.random.default_rng(0).normal(size=60), 60, 0.9
    target = EMA(decay=beta, debias=True).weights(T)[1:] @ theta

    def fitted(weight: Any) -> float:
        root = np.sqrt([weight(beta, t, T) for t in range(1, T + 1)])
        return float(np.linalg.lstsq(root[:, None], root * theta, rcond=None)[0][0])

    assert near(fitted(of.right), target)
    assert not near(fitted(of.printed), target, 0.01)


@second("16")
def _(of: Statement) -> None:
    eta, beta = 0.01, 0.9
    z = np.exp(-2j * np.pi * (np.arange(1_000_000) + 0.5) / 1_000_000)
    with_momentum = (np.abs(eta * (1 - beta) / ((1 - z) * (1 - beta * z) + eta * (1 - beta) * z)) ** 2).mean()
    plain = (np.abs(eta / (1 - (1 - eta) * z)) ** 2).mean()
    assert near(of.right(beta), float(with_momentum / plain), 0.02)
    assert not near(of.printed(beta), float(with_momentum / plain), 0.5)
    noise = np.random.default_rng(2).normal(size=(20_000, 150))  # of one update: the condition that is named
    assert near(of.printed(beta), float((noise @ EMA(decay=beta).weights(150)[1:]).var()), 0.04)


@second("17", "3.3-advice")
def _(of: Statement) -> None:
    noise = np.random.default_rng(0).normal(size=100)

    def best_rate(with_ema: bool) -> float:
        losses = {}
        for rate in np.linspace(0.05, 1.5, 30):
            theta = average = 10.0
            for g in noise:
                theta -= rate * (theta + g)
                average = 0.9 * average + 0.1 * theta if with_ema else average
            losses[float(rate)] = theta**2
        return min(losses, key=lambda rate: losses[rate])

    same = best_rate(True) / best_rate(False)
    unit = min(64 / 256, 1.0) if of.id == "17" else 1.0
    if (
        of.id == "17"
    ):  # along an EMA of gradients, one sample a step, B_c = 900 at θ = 1: half of θ² is 0.5 before
        left = {}
        for rate in (of.printed(1.0, 900.0, 0.9), of.right(1.0, 900.0, 0.9)):
            draws, weights, momentum = np.random.default_rng(4), np.ones(4000), np.zeros(4000)
            for _ in range(200):
                momentum = 0.9 * momentum + 0.1 * (weights + 30 * draws.normal(size=4000))
                weights = weights - rate * momentum
            left[rate] = float((weights**2).mean() / 2)
        assert left[of.printed(1.0, 900.0, 0.9)] > 2 > 0.5 > left[of.right(1.0, 900.0, 0.9)]
    assert near(of.right(64.0, 256.0, 0.9) / unit, same)
    assert of.printed(64.0, 256.0, 0.9) / unit > 3 * same


@second("18")
def _(of: Statement) -> None:
    from scipy.stats import binom

    n, delta = 50, 0.05
    for M, holds in ((1.0, True), (10.0, False)):  # one hypothesis, KL = 0, loss M·Bernoulli(½)
        printed, right = (
            binom.cdf(math.ceil(n * (0.5 - form(0.0, n, delta, M) / M)) - 1, n, 0.5)
            for form in (of.printed, of.right)
        )
        assert right <= delta
        assert (printed <= delta) == holds


@second("21")
def _(of: Statement) -> None:
    x, var = np.array([1.0, -2.0]), 0.3
    anywhere = var * float(x @ x)  # E(ε·x)², whatever θ is
    assert of.right(0.9) * anywhere >= anywhere > of.printed(0.9) * anywhere


@second("23")
def _(of: Statement) -> None:
    rho = 0.25
    assert of.printed(abs, 0.0, rho) > (of.printed(abs, 1.0, rho) + of.printed(abs, -1.0, rho)) / 2
    assert near(of.printed(abs, 0.0, rho), rho) and near(of.printed(abs, 1.0, rho), rho / 2)
    assert of.right(abs, 0.0, rho) <= (of.right(abs, 1.0, rho) + of.right(abs, -1.0, rho)) / 2


@second("4.3-proof")
def _(of: Statement) -> None:
    import sympy

    x = sympy.Symbol("x")
    second_derivative = sympy.diff(sympy.sqrt(1 + x**2), x, 2)
    assert second_derivative.subs(x, 0) == 1 > second_derivative.subs(x, 1) == sympy.sqrt(2) / 4


@second("25")
def _(of: Statement) -> None:
    fast = slow = Fraction(1)
    for _ in range(4):
        for _ in range(3):
            fast -= Fraction(1, 5) * fast
        slow += Fraction(1, 2) * (fast - slow)
        fast = slow
    assert near(of.right(1.0, 0.8, 3, 0.5, 4), float(slow))
    assert not near(of.printed(1.0, 0.8, 3, 0.5, 4), float(slow), 0.1)


@second("26")
def _(of: Statement) -> None:
    latest = Mean(start=90).weights(100)[-10:]
    assert np.allclose(of.right([1.0] * 5, 10), latest)
    assert not np.allclose(of.printed([1.0] * 5, 10), latest, rtol=0.2)


@second("6.1-both")
def _(of: Statement) -> None:
    assert set(of.printed) - set(of.right) == {
        "discriminator"
    }  # in no published evaluation: Yazıcı, BigGAN, StyleGAN2


@second("32", "57")
def _(of: Statement) -> None:
    from emabench.audit.tools import Quadratic  # the argument that the forms take, nothing of its moments

    def bound(form: Any, q: Any, T: int) -> float:
        return form(q, T) if of.id == "32" else form(q, T, 0.0)

    frozen = Quadratic(1.0, 0.5, 0.0, 0.9999, 10.0)
    assert 0.5 * propagated(0.5, 1.0, 0.0, 0.9999, 10.0, 500)[1] > 10 * bound(of.printed, frozen, 500)
    for eta, h, sigma2, beta, start, T in random_quadratics(150):
        excess = h / 2 * propagated(eta, h, sigma2, beta, start, T)[1]
        assert excess <= bound(of.right, Quadratic(h, eta, sigma2, beta, start), T) * (1 + 1e-6) + 1e-12


@second("34")
def _(of: Statement) -> None:
    T, windows = 20_000, np.logspace(0.5, 5, 40_000)
    beta = 1 - 1 / windows
    best = windows[np.argmin(beta ** (2 * T) + (1 - beta) / (1 + beta))]
    assert near(1 / (1 - of.right(T, 1.0)), best, 0.02)
    assert 1 / (1 - of.printed(T, 1.0)) < best / 20


@second("35")
def _(of: Statement) -> None:
    for t in (0, 3, 10):
        byol = 1 - (1 - 0.96) * (math.cos(math.pi * t / 10) + 1) / 2  # Grill et al. 2020, to β_max = 1
        assert near(of.right(t, 10, 0.96, 1.0), byol)
    assert of.printed(0, 10, 0.96, 1.0) > of.printed(10, 10, 0.96, 1.0)


@second("8.1-gain")
def _(of: Statement) -> None:
    rows = table("imagenet_resnet50")["rows"]
    gains = [
        round(rows[r]["reported"]["top1"] - rows["sgd"]["reported"]["top1"], 1)
        for r in ("ema99", "ema999", "swa")
    ]
    assert tuple(gains[:2]) == of.right
    assert of.printed[1] == gains[2]  # SWA's


@second("9.1-basis")
def _(of: Statement) -> None:
    T, window = 800_000, 1 / (1 - 0.9999)  # DDPM
    assert 0.5 < (1 / (1 - of.right(T))) / window < 2
    assert (1 / (1 - of.printed(T))) < window / 20


@second("9.2-apply", "17.4-listing")
def _(of: Statement) -> None:
    def methods(source: str) -> set[str]:
        return {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}

    assert "restore" not in methods(of.printed)
    assert "restore" in methods(of.right)
    assert "param.data = self.shadow[name]" in of.printed  # the same tensor, not a copy
    assert "param.data = self.shadow[name]" not in of.right


@second("9.3-bias")
def _(of: Statement) -> None:
    total = EMA(decay=0.99).weights(20).sum()  # from a copy: already one
    assert near(total / of.right(0.99, 20), 1.0)
    assert total / of.printed(0.99, 20) > 5


@second("37")
def _(of: Statement) -> None:
    import sympy

    g = sympy.Symbol("g", positive=True)
    assert sympy.diff(1 - sympy.Rational(1, 10) / sympy.sqrt(1 + g**2), g).subs(g, 1) > 0  # as printed: rises
    assert of.printed(2.0, 0.1) > of.printed(1.0, 0.1)
    assert of.right(2.0, 0.1) < of.right(1.0, 0.1)


@second("40")
def _(of: Statement) -> None:
    stays = [of.printed(1.0, 1.0, 0.0, l1, l2, 0.1) for l1 in (0.1, 5.0) for l2 in (0.0, 3.0)]
    assert all(near(value, 1.0) for value in stays)  # no gradient, weights at their average: nothing decays
    assert of.right(1.0, 1.0, 0.0, 5.0, 0.0, 0.1) < 1.0


@second("11-cost")
def _(of: Statement) -> None:
    from array import array

    assert of.right(10)["bytes"] == 10 * array("f").itemsize
    assert of.printed(10)["bytes"] == 0


@second("41")
def _(of: Statement) -> None:
    from emabench.audit.sections.s12a_convex import _Case

    broken = 0
    for eta, h, sigma2, beta, start, T in random_quadratics(300, most=0.5):
        w = (1 - beta) * beta ** np.arange(T - 1, -1, -1.0) / (1 - beta**T)
        s, rho = np.arange(T), 1 - eta * h
        common = np.minimum.outer(s, s)
        C = (
            eta**2
            * sigma2
            * rho ** np.abs(np.subtract.outer(s, s))
            * (1 - rho ** (2.0 * common))
            / (1 - rho**2)
        )
        excess = h / 2 * (float(w @ rho**s * start) ** 2 + float(w @ C @ w))
        case = _Case(h, eta, sigma2, beta, start**2, h / 2 * start**2, T)
        assert excess <= of.right(case) * (1 + 1e-9)
        broken += excess > of.printed(case)
    assert broken


@second("12.1-noise")
def _(of: Statement) -> None:
    import sympy

    beta, T = sympy.Symbol("beta", positive=True), sympy.Symbol("T", positive=True)
    assert sympy.limit(1 / (1 - beta**11), beta, 1, "-") == sympy.oo
    assert sympy.limit(1 / (1 - sympy.Rational(1, 2) ** (T + 1)), T, sympy.oo) == 1
    assert of.printed[0][1] == of.printed[-1][1] and of.right[0][0] == of.right[-1][0]


def total(u: float, a: float, C: float, T: float) -> float:
    return u**2 * a / 2 + C / (u**2 * T)


@second("43")
def _(of: Statement) -> None:
    u, a, C, T, d = 0.3, 2.0, 0.5, 50.0, 1e-6
    slope = -(total(u + d, a, C, T) - total(u - d, a, C, T)) / (2 * d)  # in β = 1 − u
    assert near(of.right(u, a, C, T), slope, 1e-5)
    assert not near(of.printed(u, a, C, T), slope, 0.05)


@second("44", "45")
def _(of: Statement) -> None:
    for a, C, T in ((2.0, 0.5, 500.0), (0.1, 3.0, 1e5)):
        grid = np.logspace(-3, 0, 300_001)
        values = total(grid, a, C, T)  # type: ignore[arg-type]
        if of.id == "44":
            assert near(1 - of.right(a, C, T), float(grid[np.argmin(values)]), 1e-3)
            assert not near(1 - of.printed(a, C, T), float(grid[np.argmin(values)]), 0.1)
        else:
            assert near(of.right(a, C, T), float(np.min(values)), 1e-6)
    if of.id == "45":
        assert of.printed(2.0, 1.0, 9.0) < of.printed(1.0, 1.0, 9.0)  # more noise, less error


@second("12.1-conclusion")
def _(of: Statement) -> None:
    ratio = math.log((2 / 1e8) ** 0.5 / (2 / 1e4) ** 0.5) / math.log(1e4)
    assert near(of.right, ratio) and not near(of.printed, ratio, 0.3)


@second("12.1-agree")
def _(of: Statement) -> None:
    by_34, by_44 = (
        math.log(w(1e8) / w(1e4)) / math.log(1e4) for w in (lambda T: 2 / math.sqrt(T), lambda T: T**-0.25)
    )
    assert near(by_34, of.printed[0]) and near(by_44, of.printed[1]) and not near(by_34, by_44, 0.1)


@second("47")
def _(of: Statement) -> None:
    from emabench.audit.sections.s12a_convex import _Case

    slow = _Case(1.0, 1e-6, 0.0, 0.9, 1.0, 0.5, 1000)  # θ²/2 from 1 with η = 10⁻⁶: the gradient stays 1
    assert of.printed[1](slow) < 0.01
    assert of.right[1](slow) >= 1.0
    for eta, h, sigma2, beta, start, T in random_quadratics(100):
        mean = np.mean([h**2 * propagated(eta, h, sigma2, beta, start, t)[0] for t in range(min(T, 40))])
        case = _Case(h, eta, sigma2, beta, start**2, h / 2 * start**2, min(T, 40))
        assert mean <= of.right[1](case) * (1 + 1e-9)


@second("48")
def _(of: Statement) -> None:
    gap, eps, sigma2 = 0.5, 0.1, 100.0
    enough = sigma2 / eps**2  # T noisy gradients locate a minimum to variance σ²/T at best (Cramér–Rao)
    assert 8 * of.printed(1.0, gap, eps, sigma2) < enough < of.right(1.0, gap, eps, sigma2)


@second("50")
def _(of: Statement) -> None:
    theta, average = np.array([1.0, -1.0]), np.array([2.0, 0.5])
    new = theta - np.array([0.3, 0.2])
    after = 0.8 * average + 0.2 * new
    assert np.allclose(of.right(0.8, average, theta, np.array([0.3, 0.2])), after)
    assert not np.allclose(of.printed(0.8, average, theta, np.array([0.3, 0.2])), after)


@second("52", "54")
def _(of: Statement) -> None:
    from emabench.audit.tools import Quadratic

    rng = np.random.default_rng(0)
    for eta, h, sigma2, beta, _, _ in random_quadratics(60):
        e, d = rng.normal(size=2)
        q = Quadratic(h, eta, sigma2, beta)
        xi = math.sqrt(sigma2) * rng.choice([-1.0, 1.0], size=2000)
        new = d - eta * (h * d + xi)
        moved = beta * e + (1 - beta) * new
        if of.id == "52":
            lam, right = of.right(q, e, d)
        else:
            lam, c, noise = of.right(q)
            right = (1 - c) * (e * e + lam * d * d) + noise * eta**2 * sigma2
        values = moved**2 + lam * new**2
        assert values.mean() <= right + 5 * values.std() / math.sqrt(2000)
    still = Quadratic(1.0, 0.1, 0.0, 0.9)  # d = 0, e = 1, no noise: V' = β²
    if of.id == "52":
        assert of.printed(still, 1.0, 0.0)[1] < 0.81
    else:
        small = Quadratic(1.0, 0.1, 0.0, 0.1)  # e = 0, d = 1: V' = (0.9·0.9)² + λ·0.81
        lam = of.printed(small)[0]
        assert 0.81**2 + lam * 0.81 > lam


@second("53")
def _(of: Statement) -> None:
    def L(x: float) -> float:
        return x * x / 2 + math.exp(x) - x

    def g(x: float) -> float:
        return x + math.exp(x) - 1

    left, right = of.printed(L, g, 1.0, 1.0, 0.0)
    assert left < right + L(0) - 1  # L* = 1 at 0
    for e, t in np.random.default_rng(0).normal(size=(500, 2)):
        left, right = of.right(L, g, 1.0, float(e), float(t))
        assert left >= right - 1e-12


@second("54-limit")
def _(of: Statement) -> None:
    values = []
    for eta in (0.02, 0.005):
        theta, average = simulated(eta, 1.0, 0.9, int(4 / eta), runs=20_000)
        values.append(float((average**2).mean() + 8.1 * (theta**2).mean()))
    slope = math.log(values[0] / values[1]) / math.log(4)
    assert abs(slope - of.right) < 0.1 < abs(slope - of.printed)


@second("55")
def _(of: Statement) -> None:
    from emabench.audit.tools import Quadratic

    for eta, h, sigma2, beta, start, T in random_quadratics(100):
        assert propagated(eta, h, sigma2, beta, start, T)[0] <= of.right(
            Quadratic(h, eta, sigma2, beta, start), T
        ) * (1 + 1e-9)
    assert of.printed(Quadratic(start=0.0), 10) == 0 < propagated(0.1, 1.0, 1.0, 0.9, 0.0, 10)[0]


@second("56")
def _(of: Statement) -> None:
    path, beta = np.arange(300.0), 0.9
    average = EMA(decay=beta).weights(299) @ path
    assert near(path[-1] - average, of.right(beta, 5, path), 1e-9)  # a steady move attains it
    assert path[-1] - average > 1000 * of.printed(beta, 20, path)


@second("58")
def _(of: Statement) -> None:
    from emabench.audit.tools import Quadratic

    _, average = simulated(0.1, 1.0, 0.9, 300)
    floor = float((average**2).mean()) / 2
    q = Quadratic(1.0, 0.1, 1.0, 0.9)
    assert near(of.right(q), floor, 0.05)
    assert of.printed(q) < 0.01 * floor


@second("60")
def _(of: Statement) -> None:
    from emabench.audit.tools import Quadratic

    q = Quadratic(2.0, 0.01, 4.0, 0.9, 20.0)
    floor = propagated(0.01, 2.0, 4.0, 0.9, 0.0, 2000)[0]
    meets = next(t for t in range(10_000) if (0.98**t * 20.0) ** 2 < floor)
    assert near(of.right(q), meets, 0.05)
    assert not near(of.printed(q), meets, 0.3)


@second("61")
def _(of: Statement) -> None:
    beta, dt, average = 0.99, 0.01, 0.0  # θ = sin(0.05 t), integrated; amplitude once it has settled
    amplitude = 0.0
    for k in range(200_000):
        average += dt * (1 - beta) * (math.sin(0.05 * k * dt) - average)
        amplitude = max(amplitude, average) if k > 150_000 else 0.0
    assert near(abs(of.right(0.05j, 0.01)), amplitude, 0.02)
    assert abs(of.printed(0.05j, 0.01)) > 10 * amplitude


@second("62")
def _(of: Statement) -> None:
    a, w = 0.1, 0.37j  # d/dt of e^{wt} is w times it
    response = a / (a + w)
    assert abs(w * response - a * (1 - response)) < 1e-12  # with the average on the left
    assert abs(w - a * (1 - response)) > 0.1  # with the weights on the left
    assert (of.right, of.printed) == ("ema", "theta")


@second("73", "73-exactly")
def _(of: Statement) -> None:
    from scipy.integrate import quad

    a = 0.2
    whole = 2 * quad(lambda f: a * a / (a * a + 4 * math.pi**2 * f * f), 0, np.inf)[0]
    discrete = sum((a * (1 - a) ** k) ** 2 for k in range(400))  # Parseval
    if of.id == "73":
        assert near(of.right(a), whole) and not near(of.printed(a), whole, 0.05)
    else:
        assert near(of.right(1 - a), discrete) and not near(of.printed(1 - a), discrete, 0.05)


@second("79")
def _(of: Statement) -> None:
    from scipy.integrate import quad

    s2, S0, fs = 1.0, 3e4, 1e-3

    def J(a: float) -> float:
        signal = quad(
            lambda f: S0 * math.exp(-f / fs) * (2 * math.pi * f) ** 2 / (a * a + (2 * math.pi * f) ** 2),
            0,
            40 * fs,
        )[0]
        return 2 * signal + s2 * a / 2

    grid = np.logspace(-3, 0, 400)
    best = float(grid[np.argmin([J(float(a)) for a in grid])])
    assert near(of.right(s2, S0, fs), best, 0.05)
    assert of.printed(s2, S0, fs) > 2 * best


@second("13.5-example-1", "13.5-example-2")
def _(of: Statement) -> None:
    s2 = 1 if of.id.endswith("1") else 10
    exact = float(Fraction(s2) / (Fraction(s2) + 100 * Fraction(math.sqrt(math.pi / 10))))
    assert near(of.right, exact, 0.01) and not near(of.printed, exact, 0.5)


@second("81", "82")
def _(of: Statement) -> None:
    eta, s2 = 0.01, 4.0  # a step adds η²σ² of variance and takes η of time
    assert near(of.right(eta, s2) * eta, eta**2 * s2) and near(of.printed(eta, s2) * eta, 2 * eta**2 * s2)


@second("83")
def _(of: Statement) -> None:
    eta, beta = 0.01, 0.9  # a step moves the average by (1 − β) of the difference and takes η of time
    assert near(of.right(eta, beta) * eta, 1 - beta) and not near(of.printed(eta, beta) * eta, 1 - beta, 0.5)


@second("86")
def _(of: Statement) -> None:
    rng, theta, average = np.random.default_rng(0), np.full(2000, 3.0), np.full(2000, 3.0)
    for _ in range(2000):
        theta = theta - 0.01 * (theta - 3) + math.sqrt(0.02 * 0.1) * rng.normal(size=2000)
        average = average + 0.01 * 0.1 * (theta - average)
    pushed = [float(theta.mean()) - 3 - form(1.0, 10.0, 3.0) for form in (of.right, of.printed)]
    assert abs(pushed[0]) < 0.05 < abs(pushed[1])


@second("93")
def _(of: Statement) -> None:
    v, r = 0.5, math.sqrt(0.5)
    theta, e = np.linspace(-12, 12, 2001), np.linspace(-12, 12, 401)
    spread = [
        float(np.trapezoid([x * x * np.trapezoid(form(theta, float(x), v, r), theta) for x in e], e))
        for form in (of.right, of.printed)
    ]
    assert near(spread[0], v, 1e-4)
    assert spread[1] > 2 * v


@second("94", "14.4-hotter")
def _(of: Statement) -> None:
    theta, average = simulated(0.05, 1.0, 0.95, 200)
    ratio = float(average.var() / theta.var())
    if of.id == "94":
        assert near(of.right(0.95, 0.05), ratio, 0.05) and of.printed(0.95, 0.05) > 10 * ratio
    else:
        assert ratio < 1 and (of.right, of.printed) == ("less", "more")


@second("95")
def _(of: Statement) -> None:
    rng, worst = np.random.default_rng(0), 0.0
    beta, fresh = np.float32(0.9999), np.float32(1 - 0.9999)
    for a, theta in rng.uniform(0.5, 2, size=(500, 2)).astype(np.float32):
        got = Fraction(float(beta * a + fresh * theta))
        exact = Fraction(9999, 10000) * Fraction(float(a)) + Fraction(1, 10000) * Fraction(float(theta))
        worst = max(worst, abs(float(got / exact - 1)))
    assert of.right(0.9999) / 4 < worst < 2 * of.right(0.9999)
    assert of.printed(0.9999) > 1000 * worst


def measured_errors(form: str, decay: float) -> dict[int, float]:
    """The engine's own table of rounding errors in float32 (torch, against float64)."""
    rows = json.loads((PACKAGE.parent / "benchmarks" / "numerics.json").read_text())
    return {
        r["steps"]: r["error"] for r in rows if (r["type"], r["form"], r["decay"]) == ("float32", form, decay)
    }


@second("96", "97", "15.3-orders")
def _(of: Statement) -> None:
    for form in ("plain", "lerp"):
        errors = measured_errors(form, 0.9)
        assert 0.5 < errors[100_000] / errors[1000] < 2  # √T would be 10
    if of.id != "15.3-orders":
        errors = measured_errors("plain", 0.9)  # (98)
        assert of.printed(100_000, 0.9) > 100 * errors[100_000]
        assert errors[100_000] / 5 < of.right(100_000, 0.9) < 5 * errors[100_000]


@second("15.1-matters", "15.1-example")
def _(of: Statement) -> None:
    if of.id == "15.1-example":
        assert near(of.right**2, 1e5 * 1e-14 * 100, 0.03) and of.printed > 90 * of.right
    else:
        error = measured_errors("plain", 0.9)[100_000]
        assert error / 3 < of.right < 3 * error < of.printed / 1000


@second("15.2-cancellation")
def _(of: Statement) -> None:
    old, new = Fraction(999, 1000) * Fraction(7, 5), Fraction(1, 1000) * Fraction(8, 5)
    assert (1 if old * new > 0 else -1) == of.right[0] != of.printed[0]
    assert old / new > 500


@second("99", "15.2-order")
def _(of: Statement) -> None:
    errors = measured_errors("kahan", 0.9)
    assert 0.5 < errors[100_000] / errors[1000] < 2
    if of.id == "99":
        lost = {"printed": 0, "right": 0}
        for a, theta in np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32):
            for name, form in (("printed", of.printed), ("right", of.right)):
                lost[name] += form(a, np.float32(0), theta, np.float32(0.9), np.float32(0.1))[1] != 0
        assert lost["printed"] == 0
        assert lost["right"] > 50
    else:
        assert errors[100_000] / 3 < of.right(1e5) < 3 * errors[100_000]
        assert of.printed(1e3) < errors[1000] / 500


@second("15.3-cost")
def _(of: Statement) -> None:
    def operations(source: str) -> int:
        tree = ast.parse(source.replace("(1 - beta)", "fresh"))
        return sum(isinstance(node, ast.BinOp | ast.AugAssign) for node in ast.walk(tree))

    plain, lerp, kahan = map(operations, (listings.PLAIN, listings.LERP, listings.KAHAN))
    assert (lerp - plain, kahan - plain) == of.right != of.printed
    assert of.printed == ("θ − a".count("−"), "− c, + y, − a".count(",") + 1)  # (100); (99) beyond (98)


@second("101")
def _(of: Statement) -> None:
    assert np.float16(1.0) - np.float16(1e-4) == np.float16(1.0)  # half of the spacing below 1 is 0.00024
    assert of.printed(10, 1e-4) == 1.0 > of.right(10, 1e-4)


@second("102")
def _(of: Statement) -> None:
    mixed, full = 2 + 2 + 12, 4 + 4 + 8  # Rajbhandari et al. 2020 (ZeRO): 16 bytes a parameter either way
    assert near(of.right, 1 - mixed / full) and of.printed == 0.25


def table(name: str) -> dict[str, Any]:
    return yaml.safe_load((conf_dir() / "table" / f"{name}.yaml").read_text(encoding="utf-8"))


@second("16.1-is")
def _(of: Statement) -> None:
    spec = table("ddpm_cifar10")
    real = next(n["value"] for n in spec["context"] if n["metric"] == "is")
    published = [
        n["value"] for row in spec["rows"].values() for n in row.get("published", []) if n["metric"] == "is"
    ]
    assert max(of.printed) > real > max(of.right)
    assert all(min(abs(value - p) for p in published) < 0.05 for value in of.right)


@second("105")
def _(of: Statement) -> None:
    theta = Fraction(0)
    for _ in range(3):
        theta -= Fraction(1, 4) * (theta - 2)
    assert near(of.right(0.0, 0.25, 3, 2.0), float(theta)) and near(of.printed(0.0, 0.25, 3, 2.0), 0.5)


@second("16.4-adapts")
def _(of: Statement) -> None:
    def lag(decay: Any, T: int) -> float:
        average = 0.0
        for t in range(T):
            average = decay(t) * average + (1 - decay(t)) * t
        return T - 1 - average

    assert near(lag(of.right, 4000), lag(of.right, 40_000), 0.01)
    assert lag(of.printed, 40_000) > 2.5 * lag(of.printed, 4000)


@second("109", "109-alpha")
def _(of: Statement) -> None:
    t = 900 if of.id == "109" else 2000
    kept = np.array([1 - 1 / math.sqrt(s + 1) for s in range(1, t + 1)])
    later = np.append(np.cumprod(kept[::-1])[::-1][1:], 1.0)
    weights = (1 - kept) * later
    if of.id == "109":
        assert near(of.right(t, 30), float(weights[t - 31])) and of.printed(t, 30) < 1e-20
    else:
        slopes = [math.log(weights[t - 1 - 2 * k] / weights[t - 1 - k]) / math.log(2) for k in (5, 50)]
        assert slopes[1] < 3 * slopes[0] < 0  # a power of k would have one slope
        assert near(of.right(100) / of.right(50), float(weights[t - 101] / weights[t - 51]), 0.1)


@second("17.1-vanishing")
def _(of: Statement) -> None:
    for steps in (10, 1000):
        left = float(
            EMA(decay=0.9).weights(steps)[0]
        )  # the distance that remains to weights that stand still
        assert (left > 0.3) == (steps < 10) or left < 0.4
    assert (of.right, of.printed) == ("average", "weights")


@second("110")
def _(of: Statement) -> None:
    from scipy.optimize import minimize_scalar

    before, eta, h = 2.0, 0.5, 3.0
    implicit = minimize_scalar(lambda x: h * x**2 / 2 + (x - before) ** 2 / (2 * eta)).x
    assert near(
        implicit, before - eta * h * of.printed(before, implicit), 1e-5
    )  # what the printed index solves
    descent = before - eta * h * of.right(before, None)
    assert near(descent, -1.0) and abs(implicit - descent) > 1


@second("111")
def _(of: Statement) -> None:
    norms = np.array([0.5, 1.0, 2.0])
    assert near(of.right(10 * norms, 100), 10 * of.right(norms, 100))  # a threshold in the gradient's unit
    assert of.printed(10 * norms, 100) == of.printed(norms, 100)


@second("17.2-same-run")
def _(of: Statement) -> None:
    there = table("bert")["rows"]["none"]["reported"]["perplexity"]
    here = table("bert_layernorm")["rows"]["norm"]["reported"]["perplexity"]
    assert (of.right, of.printed) == (there, here) and there != here


@second("17.2-equivalent")
def _(of: Statement) -> None:
    beta = Fraction(of.right).limit_denominator(1000)
    assert (1 + beta) / (1 - beta) == Fraction(16, 5)
    assert (1 + of.printed) / (1 - of.printed) > 600 * 3.2


@second("114")
def _(of: Statement) -> None:
    rows = table("bert")["rows"]
    by_perplexity = min(
        (r for r in rows.values() if r.get("reported")), key=lambda r: r["reported"]["perplexity"]
    )
    assert by_perplexity["label"].endswith("0.9999")  # of a Transformer with LayerNorm
    assert 1 / (1 - of.printed) < 1 / (1 - of.right)


@second("17.3-equivalent")
def _(of: Statement) -> None:
    T = 100
    flat, ramped = EMA(decay=0.95).weights(T), EMA(decay=0.95, warmup=50).weights(T)
    assert not np.allclose(flat, ramped)  # another average of the same weights
    assert (of.right, of.printed) == ("average", "rate")


@second("17.3-slower")
def _(of: Statement) -> None:
    T = 30_000
    lag = (T - EMA(decay=0.999).weights(T) @ np.arange(T + 1.0)) / 5004
    assert near(of.right, float(lag), 0.01) and of.printed > 9 * lag
    longer = (10 * T - EMA(decay=0.9999).weights(10 * T) @ np.arange(10 * T + 1.0)) / 5004
    assert near(of.printed, float(longer), 0.01)


@second("17.3-final")
def _(of: Statement) -> None:
    T = 20_000
    apart = np.abs(EMA(decay=0.999).weights(T) - EMA(decay=0.999, warmup=2000).weights(T)).sum()
    assert apart < 1e-7  # e^{−18}; at 450 000 steps e^{−405}
    assert of.right == 0 and of.printed > 0.1


@second("17.4-jump")
def _(of: Statement) -> None:
    assert (
        "beta = 0.99 * (step / warmup_steps)" in listings.TRAINING_LOOP
        and "beta = 0.999\n" in listings.TRAINING_LOOP
    )
    windows = [1 / (1 - of.printed(step, 1000)) for step in (99, 100)]
    assert windows[1] > 9 * windows[0]
    assert near(of.right(99, 1000), 0.99 * 0.999)


@second("17.4-batchnorm")
def _(of: Statement) -> None:
    rng = np.random.default_rng(0)
    path = 1.0 + rng.normal(size=(4000, 30))
    raw, mean = float((path**2).sum(1).mean()), float((path.mean(0) ** 2).sum())
    assert raw > 1.9 * mean  # E‖w‖² = ‖E w‖² + the variance of all weights
    assert (of.right, of.printed) == ("recomputed", "training")


@second("17.4-warmup")
def _(of: Statement) -> None:
    shares = [5 / 90, 10_000 / 1_000_000, 1_000 / 800_000, 0.01]
    assert max(shares) < of.printed[0]
    assert of.right[0] <= min(shares) and max(shares) <= of.right[1]


def test_every_wrong_statement_has_a_second_derivation() -> None:
    assert set(SECOND) >= WRONG


@pytest.mark.parametrize("id", SECOND)
def test_second_derivation(id: str) -> None:
    SECOND[id](EVERY[id])
