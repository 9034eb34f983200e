"""§7: the rate of convergence, the best β, and schedules of β."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from emabench.audit.statement import (
    CONDITIONAL,
    DEFINITION,
    EMPIRICAL,
    HOLDS,
    WRONG,
    Curves,
    Effort,
    Form,
    Outcome,
    conditional,
    defined,
    reported,
    statement,
    truth,
)
from emabench.audit.tools import Quadratic, ema_weights, number, percent, search, variance_factor


def quadratics(effort: Effort, count: int) -> Iterator[tuple[Quadratic, int]]:
    """Noisy quadratics over the whole space of the assumptions, 0 < ηh ≤ 1, with a number of steps."""
    rng = effort.rng
    for _ in range(count):
        h = float(10 ** rng.uniform(-3, 3))
        eta = float(10 ** rng.uniform(-4, 0)) / h
        beta = 1 - float(10 ** rng.uniform(-5, 0))
        sigma2 = 0.0 if rng.uniform() < 0.2 else float(10 ** rng.uniform(-3, 3))
        start = 0.0 if rng.uniform() < 0.2 else float(10 ** rng.uniform(-2, 2))
        yield Quadratic(h, eta, sigma2, beta, start), int(10 ** rng.uniform(0, 5))


def where(q: Quadratic, T: int) -> str:
    """A quadratic in words."""
    return f"h = {number(q.h)}, ηh = {number(q.eta * q.h)}, β = {number(q.beta, 6)}, σ² = {number(q.sigma2)}, d₀ = {number(q.start)}, T = {T}"


def quadratic_bound(q: Quadratic, T: int) -> float:
    """Bias at T, and the stationary floor: (h/2) b_T² + ησ²/(2(2 − ηh)) · F(β, ρ)."""
    floor = q.eta * q.sigma2 / (2 * (2 - q.eta * q.h)) * variance_factor(q.beta, q.rho)
    return q.h / 2 * q.ema_mean(T) ** 2 + floor


QUADRATIC_BOUND = (
    r"\mathbb{E}[L(\theta_{ema,T})]-L^* \leq \frac{h}{2}b_T^2 + \frac{\eta\sigma^2}{2B(2-\eta h)}\cdot\frac{1-\beta}{1+\beta}"
    r"\cdot\frac{1+\beta\rho}{1-\beta\rho},\quad b_T = \left[\beta^T+(1-\beta)\rho\frac{\rho^T-\beta^T}{\rho-\beta}\right](\theta_0-\theta^*)"
    r"\quad\text{(quadratic, each eigendirection; } \rho=1-\eta h)"
)


@statement(
    "32",
    section="7.1",
    says="SGD with an EMA on a strongly convex, smooth function: the excess loss falls as (1 − μη/2)^T to a floor of ησ²/(2μB)·(1 − β)/(1 + β).",
    formula=r"\mathbb{E}[L(\boldsymbol{\theta}_{ema,T})] - L^* \leq \left(1 - \frac{\mu\eta}{2}\right)^T(L(\boldsymbol{\theta}_0) - L^*) + \frac{\eta\sigma^2}{2\mu B} \cdot \frac{1-\beta}{1+\beta}",
    verdict=WRONG,
    method="exact second moments on quadratics; search over h, η, β, σ², θ_0 and T",
    printed=lambda q, T: (
        (1 - q.h * q.eta / 2) ** T * q.h / 2 * q.start**2
        + q.eta * q.sigma2 / (2 * q.h) * (1 - q.beta) / (1 + q.beta)
    ),
    corrected=QUADRATIC_BOUND,
    right=quadratic_bound,
    states="L μ-strongly convex and smooth; SGD",
    note="The start fades no faster than β^T, which the bound leaves out; the floor is that of independent iterates; and "
    "its first factor is a squared length where a loss is due.",
)
def convergence(bound: Form, effort: Effort) -> Outcome:
    cases = ((where(q, T), q.ema_excess(T), bound(q, T)) for q, T in quadratics(effort, effort.times(3000)))
    found = search(case for case in cases if case[2] > 1e-12)  # no bound that has underflowed
    return truth(
        found.clean,
        f"no violation in {found.tried} quadratics",
        f"{number(found.worst)} times the bound at {found.where}",
    )


@statement(
    "7.1-floor",
    section="7.1",
    says="An EMA lowers the floor of the error by (1 − β)/(1 + β).",
    verdict=WRONG,
    method="exact stationary loss on quadratics",
    printed=lambda beta, rho: (1 - beta) / (1 + beta),
    corrected=r"\frac{1-\beta}{1+\beta}\cdot\frac{1+\beta\rho}{1-\beta\rho}",
    right=variance_factor,
    table="variance_law",
)
def floor_falls(factor: Form, effort: Effort) -> Outcome:
    q = Quadratic(eta=0.01, beta=0.99)
    ratio = q.ema_excess() / (q.h / 2 * q.iterate_variance)
    claimed = factor(q.beta, q.rho)
    return truth(
        math.isclose(claimed, ratio, rel_tol=1e-6),
        f"{percent(ratio, 3)} left at β = 0.99, ηh = 0.01",
        percent(claimed, 3),
    )


@statement(
    "7.2-tradeoff",
    section="7.2",
    says="A small β reacts fast and takes away little variance, a large one slowly and much.",
    verdict=HOLDS,
    method="monotony of lag and of the exact variance in β",
    printed=variance_factor,
    states="0 ≤ ρ < 1",
)
def tradeoff(factor: Form, effort: Effort) -> Outcome:
    betas = 1 - np.logspace(-5, -0.01, 60)[::-1]
    falls = all(np.all(np.diff([factor(b, rho) for b in betas]) < 0) for rho in (0.0, 0.5, 0.99))
    lags = bool(np.all(np.diff(betas / (1 - betas)) > 0))
    return truth(
        bool(falls and lags),
        "variance falls and lag rises with β",
        f"falls at ρ = 0, 0.5, 0.99: {falls}; lag rises: {lags}",
    )


def _objective(beta: float, k: float, ratio: float) -> float:
    """Bias² + variance of (33) in units of σ²; ratio = ‖θ_0 − θ*‖²/σ²."""
    return beta ** (2 * k) * ratio + (1 - beta) / (1 + beta)


def best_decay(k: float, ratio: float) -> float:
    """The minimiser of (33), by golden section in log(1 − β)."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda x: _objective(-math.expm1(x), k, ratio),
        bounds=(math.log(1e-9), math.log(0.999)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return float(-math.expm1(found.x))


@statement(
    "33",
    section="7.2",
    says="The best β minimises bias² plus variance.",
    formula=r"\beta^* = \mathop{\arg\min}_{\beta}\left[\text{Bias}^2(\beta) + \text{Var}(\beta)\right]",
    verdict=DEFINITION,
    method="a minimum inside (0, 1)",
    printed=_objective,
)
def has_a_minimum(objective: Form, effort: Effort) -> Outcome:
    inside = []
    for k, ratio in ((100, 1.0), (10_000, 1.0), (10_000, 100.0)):
        best = best_decay(k, ratio)
        inside.append(
            objective(best, k, ratio) < min(objective(0.0, k, ratio), objective(1 - 1e-12, k, ratio))
        )
    return defined(
        all(inside), "lower inside than at β = 0 and β = 1", f"{sum(inside)} of {len(inside)} cases"
    )


@statement(
    "33-bias",
    section="7.2",
    says="Bias(β) = β^k‖θ_0 − θ*‖.",
    formula=r"\text{Bias}(\beta) = \beta^k\|\boldsymbol{\theta}_0 - \boldsymbol{\theta}^*\|",
    verdict=CONDITIONAL,
    method="exact mean of the EMA on quadratics",
    printed=lambda beta, k: beta**k,
    needs="k is the number of steps T (the text does not say), and the weights are at θ* from the first step on (ηh = 1)",
)
def bias(claimed: Form, effort: Effort) -> Outcome:
    T = 200
    at_once, slowly = (Quadratic(eta=eta, beta=0.99, start=1.0).ema_mean(T) for eta in (1.0, 0.01))
    return conditional(
        math.isclose(claimed(0.99, T), slowly, rel_tol=0.05),
        math.isclose(claimed(0.99, T), at_once, rel_tol=1e-9),
        f"{number(claimed(0.99, T))} of the initial distance at β = 0.99, k = T = 200",
        f"{number(at_once)} if the weights are at θ* at once, {number(slowly)} at ηh = 0.01",
    )


@statement(
    "33-variance",
    section="7.2",
    says="Var(β) = (1 − β)/(1 + β)·σ².",
    formula=r"\text{Var}(\beta) = \frac{1-\beta}{1+\beta}\sigma^2",
    verdict=CONDITIONAL,
    method="exact variance on quadratics",
    printed=lambda beta: (1 - beta) / (1 + beta),
    needs="successive weights are independent (ηh = 1)",
)
def variance(claimed: Form, effort: Effort) -> Outcome:
    white, correlated = (variance_factor(0.99, rho) for rho in (0.0, 0.99))
    return conditional(
        math.isclose(claimed(0.99), correlated, rel_tol=0.05),
        math.isclose(claimed(0.99), white, rel_tol=1e-9),
        f"{percent(claimed(0.99), 3)} at β = 0.99",
        f"{percent(white, 3)} for independent weights, {percent(correlated, 3)} at ηh = 0.01",
    )


@statement(
    "34",
    section="7.2",
    says="The best β is about 1 − 2/√T.",
    formula=r"\beta^* \approx 1 - \frac{2}{\sqrt{T}}",
    verdict=WRONG,
    method="numerical minimiser of (33) with k = T",
    printed=lambda T, ratio: 1 - 2 / math.sqrt(T),
    corrected=r"\beta^* \approx 1 - \frac{\ln\left(4T\|\theta_0-\theta^*\|^2/\sigma^2\right)}{2T}",
    right=lambda T, ratio: 1 - math.log(4 * T * ratio) / (2 * T),
    states="(33) with its bias and variance, T steps",
    note="It does not follow from (33): the window that minimises it grows almost in proportion to T, not to √T.",
    rank=3,
    harm="Windows 10 to 100 times too short at real lengths of training: at T = 100 000 it gives 158 steps where (33) "
    "itself asks for 15 000, and published recipes use 1 to 4 % of the run.",
    figure=lambda: Curves(
        "The window 1/(1 − β*) against the length of training",
        "T, steps",
        "window, steps",
        {
            "printed": [(10 ** (k / 4), 10 ** (k / 8) / 2) for k in range(8, 25)],
            "right": [(10 ** (k / 4), 1 / (1 - best_decay(10 ** (k / 4), 1.0))) for k in range(8, 25)],
        },
        log_x=True,
        log_y=True,
    ),
)
def best_beta(beta: Form, effort: Effort) -> Outcome:
    cases = [(T, ratio) for T in (1e3, 1e4, 1e5, 1e6) for ratio in (0.1, 1.0, 100.0)]
    off = {
        case: (1 - best_decay(*case)) / (1 - beta(*case)) for case in cases
    }  # claimed window over the best one
    worst = max(off.values(), key=lambda value: abs(math.log(value)))
    exact = 1 / (1 - best_decay(1e5, 1.0))
    return truth(
        all(abs(math.log(value)) < 0.15 for value in off.values()),
        f"a window of {number(exact)} steps at T = 100 000, ‖θ_0 − θ*‖ = σ",
        f"{number(1 / (1 - beta(1e5, 1.0)))} steps; off by a factor of {number(max(worst, 1 / worst))} at worst",
    )


def _cosine(direction: int) -> Form:
    return lambda t, T, low, high: (
        low + (high - low) * (1 + math.cos(math.pi * t / T)) / 2
        if direction < 0
        else high - (high - low) * (1 + math.cos(math.pi * t / T)) / 2
    )


@statement(
    "35",
    section="7.3",
    says="The cosine schedule takes β from small in early training to large in late training.",
    formula=r"\beta_t = \beta_{min} + \frac{1}{2}(\beta_{max} - \beta_{min})\left(1 + \cos\left(\frac{\pi t}{T}\right)\right)",
    verdict=WRONG,
    method="values at both ends, and monotony",
    printed=_cosine(-1),
    corrected=r"\beta_t = \beta_{max} - \frac{1}{2}(\beta_{max} - \beta_{min})\left(1 + \cos\left(\frac{\pi t}{T}\right)\right)",
    right=_cosine(+1),
    states="small β early, large β late (§7.3)",
    note="Runs backwards: it begins at β_max and ends at β_min. BYOL's form rises.",
    rank=1,
    harm="The run ends with β_min: what is evaluated is an average over the last ten steps (β_min = 0.9), the noise back "
    "in, after the start froze the average for as long as it is largest.",
    figure=lambda: Curves(
        "Cosine schedule of β, from 0.9 to 0.9999",
        "t/T",
        "β",
        {
            "printed": [(k / 40, _cosine(-1)(k / 40, 1.0, 0.9, 0.9999)) for k in range(41)],
            "right": [(k / 40, _cosine(+1)(k / 40, 1.0, 0.9, 0.9999)) for k in range(41)],
        },
    ),
)
def cosine_rises(beta: Form, effort: Effort) -> Outcome:
    low, high, T = 0.9, 0.9999, 1000
    values = [beta(t, T, low, high) for t in range(T + 1)]
    rises = all(b >= a - 1e-15 for a, b in itertools.pairwise(values))
    return truth(
        rises and math.isclose(values[0], low) and math.isclose(values[-1], high),
        f"from {low:g} at t = 0, rising, to {high:g} at t = T",
        f"from {values[0]:g} at t = 0 to {values[-1]:g} at t = T",
    )


@statement(
    "36",
    section="7.3",
    says="The linear ramp takes β from β_init to β_max in T_ramp steps and leaves it there.",
    formula=r"\beta_t = \min(\beta_{max}, \beta_{init} + \frac{t}{T_{ramp}}(\beta_{max} - \beta_{init}))",
    verdict=HOLDS,
    method="values at the ends, continuity, monotony",
    printed=lambda t, ramp, low, high: min(high, low + t / ramp * (high - low)),
    states="β_init ≤ β_max",
    note="Linear in β is not linear in the window: half-way from 0.9 to 0.9999 the window is 20 steps of the 10 000.",
)
def linear_ramp(beta: Form, effort: Effort) -> Outcome:
    low, high, ramp = 0.9, 0.9999, 100
    values = [beta(t, ramp, low, high) for t in range(2 * ramp)]
    steps = np.diff(values)
    ok = (
        values[0] == low
        and math.isclose(values[ramp], high)
        and math.isclose(values[-1], high)
        and bool(np.all(steps >= -1e-15))
        and steps.max() < 1.01 * (high - low) / ramp
    )
    return truth(
        ok,
        "β_init at 0, β_max from T_ramp on, no jump",
        f"{values[0]:g}, {values[ramp // 2]:g}, {values[ramp]:g} at t = 0, T_ramp/2, T_ramp",
    )


@statement(
    "7.3-typical",
    section="7.3",
    says="Typically β goes from 0.9 to 0.9999 over a tenth of training.",
    verdict=CONDITIONAL,
    method="weight left on what came before the ramp's end",
    printed=0.1,
    needs="training is much longer than the final window of 10 000 steps",
    table="ema_warmup",
)
def typical_ramp(share: Form, effort: Effort) -> Outcome:
    left = {}
    for T in (4000, 450_000):
        ramp = int(share * T)
        decays = [min(0.9999, 0.9 + t / ramp * 0.0999) for t in range(1, T + 1)]
        left[T] = sum(ema_weights(decays)[: ramp + 1])
    return conditional(
        left[4000] < 0.05,
        left[450_000] < 0.05,
        "little weight on steps before the ramp's end",
        f"{percent(left[4000])} at T = 4000, {percent(left[450_000])} at T = 450 000",
    )


@statement(
    "7.3-motivation",
    section="7.3",
    says="Early training needs a small β, late training a large one.",
    verdict=EMPIRICAL,
    method="lag on a descent, and variance in the stationary state, on a quadratic",
    printed=(0.9, 0.999),
    table="ema_warmup",
)
def small_then_large(decays: Form, effort: Effort) -> Outcome:
    small, large = decays
    q = Quadratic(eta=0.02, start=100.0)
    early = {beta: replace(q, beta=beta).ema_excess(150) for beta in decays}
    late = {beta: replace(q, beta=beta).ema_excess(100_000) for beta in decays}
    return reported(
        early[small] < early[large] and late[large] < late[small],
        "the smaller β better early, the larger one late",
        f"excess loss at step 150: {number(early[small])} and {number(early[large])}; in the end: {number(late[small])} and {number(late[large])}",
    )
