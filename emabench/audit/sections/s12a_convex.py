"""§12.1 and §12.2: convergence for convex and non-convex losses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from emabench.audit.sections.s07_theory import quadratics, where
from emabench.audit.statement import (
    CONDITIONAL,
    DEFINITION,
    HOLDS,
    NOT_CHECKABLE,
    WRONG,
    Effort,
    Form,
    Outcome,
    conditional,
    defined,
    statement,
    truth,
    undefined,
)
from emabench.audit.tools import Quadratic, number, percent, search


def debiased_excess(q: Quadratic, T: int) -> float:
    """E[L] − L* of the bias-corrected EMA over θ_0 … θ_{T−1}, weights (1 − β)β^{T−1−s}/(1 − β^T)."""
    b, r = q.beta, q.rho
    scale = 1 - b**T
    mean = (
        (b**T * q.start - q.ema_mean(T)) / scale if r == 0 else (q.ema_mean(T) - b**T * q.start) / (r * scale)
    )
    variance = q.ema_variance(T - 1) / scale**2 if T > 1 else 0.0
    if r == 0:
        mean = (1 - b) * b ** (T - 1) * q.start / scale
    return q.h / 2 * (mean**2 + variance)


@dataclass(frozen=True)
class _Case:
    """What a bound may depend on; D0 = ‖θ_0 − θ*‖², gap = L(θ_0) − L*."""

    L: float
    eta: float
    sigma2: float
    beta: float
    D0: float
    gap: float
    T: int

    @classmethod
    def of(cls, q: Quadratic, T: int) -> _Case:
        return cls(q.h, q.eta, q.sigma2, q.beta, q.start**2, q.h / 2 * q.start**2, T)


def _theorem_5(c: _Case) -> float:
    noise = (1 - c.beta) ** 2 * c.eta**2 * c.sigma2 / (2 * (1 - c.beta ** (c.T + 1)))
    return noise + 2 * c.L * c.D0 / ((1 - c.beta) ** 2 * c.T)


def _theorem_5_right(c: _Case) -> float:
    newest = (1 - c.beta) / (1 - c.beta**c.T)
    return newest * (c.D0 + c.T * c.eta**2 * c.sigma2) / c.eta + c.eta * c.sigma2


@statement(
    "41",
    section="12.1",
    says="Theorem 5: for a convex, smooth loss and η ≤ 1/2L, the EMA's excess loss is at most (1 − β)²η²σ²/2 (nearly) plus 2L‖θ_0 − θ*‖²/((1 − β)²T).",
    formula=r"\mathbb{E}[L(\boldsymbol{\theta}_{ema,T})] - L^* \leq \frac{(1-\beta)^2\eta^2\sigma^2}{2(1-\beta^{T+1})} + \frac{2L\|\boldsymbol{\theta}_0-\boldsymbol{\theta}^*\|^2}{(1-\beta)^2T}",
    verdict=WRONG,
    method="exact second moments on quadratics; search over L, η, β, σ², θ_0, T; gradient descent on other convex losses",
    printed=_theorem_5,
    corrected=r"\mathbb{E}[L(\boldsymbol{\theta}_{ema,T})]-L^* \leq \frac{1-\beta}{1-\beta^{T}}\cdot\frac{\|\boldsymbol{\theta}_0-\boldsymbol{\theta}^*\|^2+T\eta^2\sigma^2}{\eta}+\eta\sigma^2\quad\text{(bias-corrected EMA of } \boldsymbol{\theta}_0\ldots\boldsymbol{\theta}_{T-1})",
    right=_theorem_5_right,
    states="L convex and L-smooth; unbiased gradients of variance at most σ²; η ≤ 1/(2L)",
    note="Its noise term is a squared length where a loss is due, and vanishes as β → 1 while the noise does not.",
)
def theorem_5(bound: Form, effort: Effort) -> Outcome:
    def cases() -> Iterator[tuple[str, float, float]]:
        for q, T in quadratics(effort, effort.times(3000)):
            if q.eta * q.h <= 0.5:
                either = min(debiased_excess(q, T), q.ema_excess(T))  # whichever EMA the theorem means
                yield where(q, T), either, bound(_Case.of(q, T))
        for name, gradient, value, smooth in (
            ("log cosh", np.tanh, lambda x: float(np.logaddexp(x, -x) - math.log(2)), 1.0),
            (
                "Huber",
                lambda x: np.clip(x, -1, 1),
                lambda x: float(x * x / 2 if abs(x) < 1 else abs(x) - 0.5),
                1.0,
            ),
        ):
            for T in (3, 30, 300):
                for beta in (0.1, 0.9, 0.99):
                    theta, average, eta, start = 5.0, 0.0, 0.5, 5.0
                    for _ in range(T):
                        average += (1 - beta) * (theta - average)
                        theta -= eta * float(gradient(theta))
                    case = _Case(smooth, eta, 0.0, beta, start**2, value(start), T)
                    yield f"{name}, β = {beta}, T = {T}", value(average / (1 - beta**T)), bound(case)

    found = search(case for case in cases() if case[2] > 1e-12)
    return truth(
        found.clean,
        f"no violation in {found.tried} cases",
        f"{number(found.worst)} times the bound at {found.where}",
    )


@statement(
    "12.1-noise",
    section="12.1",
    says="The noise term of (41) is about (1 − β)²η²σ²/2 when β is close to 1.",
    formula=r"\frac{(1-\beta)^2\eta^2\sigma^2}{2(1-\beta^{T+1})} \approx \frac{(1-\beta)^2\eta^2\sigma^2}{2}",
    verdict=WRONG,
    method="ratio of the two along the limit that is named",
    printed=[(1 - 10.0**-k, 1000) for k in range(1, 7)],
    corrected=r"\text{when } T \gg 1/(1-\beta)",
    right=[(0.99, 10**k) for k in range(1, 7)],
    note="As β → 1 at a fixed T, 1 − β^(T+1) → 0: the term is larger by 1/((T + 1)(1 − β)).",
)
def noise_term(limit: Form, effort: Effort) -> Outcome:
    ratios = [1 / (1 - beta ** (T + 1)) for beta, T in limit]
    return truth(
        abs(ratios[-1] - 1) < 1e-3,
        "ratio → 1",
        ", ".join(number(r) for r in ratios)
        + f" at β = {limit[0][0]:g}, T = {limit[0][1]} … β = {limit[-1][0]:g}, T = {limit[-1][1]}",
    )


@statement(
    "12.1-bias",
    section="12.1",
    says="By (41), the larger β, the slower the bias fades.",
    verdict=HOLDS,
    method="monotony of the term in β",
    printed=lambda beta: 1 / (1 - beta) ** 2,
    states="(41)",
)
def bias_term(term: Form, effort: Effort) -> Outcome:
    values = [term(b) for b in np.linspace(0, 0.999, 100)]
    return truth(
        bool(np.all(np.diff(values) > 0)),
        "the term rises with β",
        f"from {number(values[0])} to {number(values[-1])}",
    )


def _total(beta: float, a: float, C: float, T: float) -> float:
    """E(β) of (42), a = η²σ²."""
    return (1 - beta) ** 2 * a / 2 + C / ((1 - beta) ** 2 * T)


@statement(
    "42",
    section="12.1",
    says="The total error: the noise term plus C/((1 − β)²T).",
    formula=r"E(\beta) = \underbrace{\frac{(1-\beta)^2\eta^2\sigma^2}{2}}_{\text{noise}} + \underbrace{\frac{C}{(1-\beta)^2T}}_{\text{bias}}",
    verdict=DEFINITION,
    method="a minimum inside (0, 1), limits at both ends",
    printed=_total,
    note="Made of (41), it adds a squared length to a loss.",
)
def total_error(E: Form, effort: Effort) -> Outcome:
    grid = [E(b, 1.0, 1.0, 1e4) for b in np.linspace(0, 0.999, 2000)]
    inside = int(np.argmin(grid))
    return defined(
        0 < inside < 1999 and E(1 - 1e-9, 1.0, 1.0, 1e4) > 1e6,
        "a minimum between β = 0 and the divergence at β → 1",
        f"at β = {np.linspace(0, 0.999, 2000)[inside]:.3f} for η²σ² = C = 1, T = 10⁴",
    )


@statement(
    "43",
    section="12.1",
    says="The derivative of E(β), set to zero.",
    formula=r"\frac{\partial E}{\partial\beta} = -2(1-\beta)\eta^2\sigma^2 + \frac{2C}{(1-\beta)^3T} = 0",
    verdict=WRONG,
    method="sympy: the derivative of (42)",
    printed=lambda u, a, C, T: -2 * u * a + 2 * C / (u**3 * T),
    corrected=r"\frac{\partial E}{\partial\beta} = -(1-\beta)\eta^2\sigma^2+\frac{2C}{(1-\beta)^3T}=0",
    right=lambda u, a, C, T: -u * a + 2 * C / (u**3 * T),
    states="(42)",
    note="The half of (42) is lost: the first term is twice too large.",
)
def derivative(slope: Form, effort: Effort) -> Outcome:
    import sympy

    beta, a, C, T = sympy.symbols("beta a C T", positive=True)
    exact = sympy.diff((1 - beta) ** 2 * a / 2 + C / ((1 - beta) ** 2 * T), beta)
    gap = sympy.simplify(exact - slope(1 - beta, a, C, T))
    return truth(gap == 0, "dE/dβ", f"difference {gap}, a = η²σ²")


@statement(
    "44",
    section="12.1",
    says="The best β is 1 − (C/(η²σ²T))^(1/4).",
    formula=r"\beta^* = 1 - \left(\frac{C}{\eta^2\sigma^2T}\right)^{1/4}",
    verdict=WRONG,
    method="numerical minimiser of (42)",
    printed=lambda a, C, T: 1 - (C / (a * T)) ** 0.25,
    corrected=r"\beta^* = 1-\left(\frac{2C}{\eta^2\sigma^2T}\right)^{1/4}",
    right=lambda a, C, T: 1 - (2 * C / (a * T)) ** 0.25,
    states="(42)",
    note="1 − β* is 2^(1/4) = 1.19 times larger. And both disagree with (34): T^(−1/4) here, T^(−1/2) there.",
)
def best_of_42(beta: Form, effort: Effort) -> Outcome:
    from scipy.optimize import minimize_scalar

    off = []
    for a, C, T in ((1.0, 1.0, 1e4), (1e-2, 1.0, 1e6), (5.0, 0.1, 1e3)):
        best = minimize_scalar(
            lambda x, a=a, C=C, T=T: _total(1 - math.exp(x), a, C, T),
            bounds=(-12, -1e-9),
            method="bounded",
            options={"xatol": 1e-10},
        )
        off.append((1 - beta(a, C, T)) / math.exp(best.x))
    return truth(
        all(abs(x - 1) < 1e-4 for x in off), "1 − β at the minimum of (42)", f"{off[0]:.4f} times it"
    )


@statement(
    "45",
    section="12.1",
    says="The least error is O((C/(η²σ²T))^(1/2)) = O(1/√T).",
    formula=r"E(\beta^*) = \mathcal{O}\left(\left(\frac{C}{\eta^2\sigma^2T}\right)^{1/2}\right) = \mathcal{O}\left(\frac{1}{\sqrt{T}}\right)",
    verdict=WRONG,
    method="the minimum of (42) as η²σ², C and T vary over six decades",
    printed=lambda a, C, T: math.sqrt(C / (a * T)),
    corrected=r"E(\beta^*)=\sqrt{\frac{2C\eta^2\sigma^2}{T}}",
    right=lambda a, C, T: math.sqrt(2 * C * a / T),
    states="(42), (44)",
    note="The rate in T is right, the noise is upside down: as printed, more noise means less error.",
)
def least_error(order: Form, effort: Effort) -> Outcome:
    ratios = []
    for a in (1e-3, 1.0, 1e3):
        for C in (1e-2, 1.0):
            T = 1e9 * C / a
            ratios.append(_total(1 - (2 * C / (a * T)) ** 0.25, a, C, T) / order(a, C, T))
    return truth(
        max(ratios) / min(ratios) < 1.01,
        "E(β*) over it constant",
        f"from {number(min(ratios))} to {number(max(ratios))}",
    )


@statement(
    "46",
    section="12.1",
    says="Without an EMA, SGD reaches O(1/√T + ησ²/B).",
    formula=r"\mathbb{E}[L(\boldsymbol{\theta}_T)] - L^* = \mathcal{O}\left(\frac{1}{\sqrt{T}} + \frac{\eta\sigma^2}{B}\right)",
    verdict=CONDITIONAL,
    method="exact loss on quadratics over their whole space",
    printed=lambda c: 1 / math.sqrt(c.T) + c.eta * c.sigma2,
    states="convex, L-smooth, η ≤ 1/(2L)",
    needs="the constant may depend on η (‖θ_0 − θ*‖²/η); σ² is of one sample's gradient; the loss is quadratic (for the "
    "last iterate of other convex losses more is needed)",
)
def sgd_rate(order: Form, effort: Effort) -> Outcome:
    def cases(of_eta: bool) -> Iterator[tuple[str, float, float]]:
        for q, T in quadratics(effort, effort.times(2000)):
            if q.eta * q.h <= 0.5:
                constant = max(1.0, q.start**2 / q.eta) if of_eta else 10 * max(1.0, q.h * q.start**2)
                yield where(q, T), q.iterate_excess(T), constant * order(_Case.of(q, T))
        slow, T = Quadratic(1.0, 1e-9, 0.0, 0.9, 1.0), 10**6  # η → 0 is within the assumptions
        yield where(slow, T), slow.iterate_excess(T), (1e9 if of_eta else 10) * order(_Case.of(slow, T))

    fixed, free = search(cases(False)), search(cases(True))
    return conditional(
        fixed.clean,
        free.clean,
        "excess loss ≤ constant × order",
        f"constant of L and θ_0 alone: {number(fixed.worst)} times it ({fixed.where}); constant ‖θ_0 − θ*‖²/η: at most {free.worst:.3f}",
    )


@statement(
    "12.1-conclusion",
    section="12.1",
    says="So the EMA improves the noise from ησ²/B to (1 − β)²η²σ² ≈ O(1/T).",
    verdict=WRONG,
    method="slope of (1 − β*)² in T, β* by (44)",
    printed=-1.0,
    corrected=r"(1-\beta^*)^2\eta^2\sigma^2 = O(1/\sqrt{T})",
    right=-0.5,
    states="(44)",
)
def conclusion(slope: Form, effort: Effort) -> Outcome:
    T = np.array([1e4, 1e6, 1e8])
    square = (1.0 / T) ** 0.5  # (1 − β*)² by (44), η²σ² = C
    fitted = float(np.polyfit(np.log(T), np.log(square), 1)[0])
    return truth(abs(slope - fitted) < 1e-6, f"T^{number(fitted)}", f"T^{number(slope)}")


def _mean_gradient(q: Quadratic, T: int) -> float:
    """Mean over s = 0 … T − 1 of E‖∇L(θ_s)‖²."""
    s = np.arange(T)
    squares = q.start**2 * q.rho ** (2.0 * s) + q.iterate_variance * (1 - q.rho ** (2.0 * s))
    return float(q.h**2 * squares.mean())


@statement(
    "47",
    section="12.2",
    says="Theorem 6: for a non-convex, L-smooth loss E‖∇L(θ_ema)‖² ≤ 4L(L(θ_0) − L*)/T + 4Lη²σ²/(1 − β)².",
    formula=r"\mathbb{E}\|\nabla L(\boldsymbol{\theta}_{ema,T})\|^2 \leq \frac{4L(L(\boldsymbol{\theta}_0)-L^*)}{T} + \frac{4L\eta^2\sigma^2}{(1-\beta)^2}",
    verdict=WRONG,
    method="exact moments on quadratics, gradient descent on non-convex losses; search over L, η, β, σ², T",
    printed=("ema", lambda c: 4 * c.L * c.gap / c.T + 4 * c.L * c.eta**2 * c.sigma2 / (1 - c.beta) ** 2),
    corrected=r"\frac1T\sum_{t<T}\mathbb{E}\|\nabla L(\boldsymbol{\theta}_t)\|^2 \leq \frac{2(L(\boldsymbol{\theta}_0)-L^*)}{\eta T}+L\eta\sigma^2,\quad\eta\leq 1/L \quad\text{(of the iterates, not of their average)}",
    right=("iterates", lambda c: 2 * c.gap / (c.eta * c.T) + c.L * c.eta * c.sigma2),
    states="L-smooth; η ≤ 1/(2L)",
    note="1/T without 1/η cannot be: a step size of 10⁻⁶ moves nothing. And no such bound holds for the average: "
    "between two minima it may stand anywhere.",
)
def theorem_6(claim: Form, effort: Effort) -> Outcome:
    of, bound = claim

    def cases() -> Iterator[tuple[str, float, float]]:
        for q, long in quadratics(effort, effort.times(1500)):
            T = min(long, 3000)
            if q.eta * q.h <= 0.5:
                left = 2 * q.h * q.ema_excess(T) if of == "ema" else _mean_gradient(q, T)
                yield where(q, T), left, bound(_Case.of(q, T))
        for T in (10, 100, 1000):  # L(θ) = 1 − cos θ, smooth with L = 1
            for eta in (0.5, 0.05, 0.005):
                theta = average = 2.5
                squares = []
                for _ in range(T):
                    squares.append(math.sin(theta) ** 2)
                    theta -= eta * math.sin(theta)
                    average = 0.9 * average + 0.1 * theta
                left = math.sin(average) ** 2 if of == "ema" else float(np.mean(squares))
                yield (
                    f"1 − cos θ, η = {eta}, T = {T}",
                    left,
                    bound(_Case(1.0, eta, 0.0, 0.9, 2.5**2, 1 - math.cos(2.5), T)),
                )

    found = search(case for case in cases() if case[2] > 1e-12)
    return truth(
        found.clean,
        f"no violation in {found.tried} cases",
        f"{number(found.worst)} times the bound at {found.where}",
    )


@statement(
    "48",
    section="12.2",
    says="So O(L(L(θ_0) − L*)/ε²) steps reach an ε-stationary point.",
    formula=r"T = \mathcal{O}\left(\frac{L(L(\boldsymbol{\theta}_0)-L^*)}{\epsilon^2}\right)",
    verdict=WRONG,
    method="the best η and β on a noisy quadratic at that many steps, exact moments",
    printed=lambda L, gap, eps, sigma2: L * gap / eps**2,
    corrected=r"T=\mathcal{O}\left(\frac{L(L(\boldsymbol{\theta}_0)-L^*)}{\epsilon^2}+\frac{L(L(\boldsymbol{\theta}_0)-L^*)\sigma^2}{\epsilon^4}\right)",
    right=lambda L, gap, eps, sigma2: L * gap / eps**2 + L * gap * sigma2 / eps**4,
    states="(47); stochastic gradients of variance σ²",
    note="The noise term of (47) must fall below ε² as well, which takes a smaller η and so more steps.",
)
def steps_needed(steps: Form, effort: Effort) -> Outcome:
    reached = {}
    for sigma2 in (0.0, 100.0):
        eps = 0.1
        T = math.ceil(8 * steps(1.0, 0.5, eps, sigma2))
        etas = np.logspace(-5, -0.31, 16)
        betas = (0.0, 0.9, 0.99, 0.999, 0.9999)
        reached[sigma2] = (
            min(
                2 * Quadratic(1.0, float(e), sigma2, float(b), 1.0).ema_excess(T) for e in etas for b in betas
            )
            / eps**2
        )
    return truth(
        max(reached.values()) <= 1,
        "E‖∇L‖² ≤ ε² after 8 times as many steps, at the best η and β",
        ", ".join(f"{number(v)} ε² at σ² = {s:g}" for s, v in reached.items()),
    )


@statement(
    "12.2-constants",
    section="12.2",
    says="The complexity is that without an EMA, with better constants.",
    verdict=NOT_CHECKABLE,
    method="what the statement leaves open",
    printed=("the constants without an EMA", "a bound on the average that is true (see 47)"),
)
def better_constants(missing: Form, effort: Effort) -> Outcome:
    return undefined(missing, "two constants to compare")


@statement(
    "12.1-agree",
    section="12.1",
    says="(34) and (44) are both the best β.",
    verdict=WRONG,
    method="exponents of T in 1 − β*",
    printed=(-0.5, -0.25),
    corrected=r"\text{neither: } 1-\beta^* \propto \ln T/T \text{ by (33), } T^{-1/4} \text{ by (42)}",
    right=(-0.5, -0.5),
    states="(34), (44)",
    note="Two objectives, two answers; at T = 10⁶ the windows differ by a factor of 16.",
)
def two_best_betas(exponents: Form, effort: Effort) -> Outcome:
    windows = [10.0 ** (-6 * e) for e in exponents]
    return truth(
        math.isclose(*windows),
        "the same window growth",
        f"{number(windows[0])} and {number(windows[1])} at T = 10⁶ (constants aside), {percent(windows[1] / windows[0])}",
    )
