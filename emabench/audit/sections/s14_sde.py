"""§14: stochastic differential equations, against the exact covariance of the discrete process.

Time is s = ηt. On L = hθ²/2 everything is Gaussian: temperature T means stationary variance T/h.
"""

from __future__ import annotations

import math

import numpy as np

from emabench.audit.statement import (
    APPROXIMATE,
    CONDITIONAL,
    DEFINITION,
    HOLDS,
    WRONG,
    Curves,
    Effort,
    Form,
    Outcome,
    approximate,
    conditional,
    defined,
    statement,
    truth,
)
from emabench.audit.tools import (
    Quadratic,
    diffusion_covariance,
    ema,
    number,
    percent,
    stationary_covariance,
    variance_factor,
)


def discrete(eta: float, h: float, beta: float, sigma2: float = 1.0) -> np.ndarray:
    """Stationary covariance of (θ, θ_ema) under (80)."""
    rho = 1 - eta * h
    A = np.array([[rho, 0.0], [(1 - beta) * rho, beta]])
    b = eta * math.sqrt(sigma2) * np.array([1.0, 1 - beta])
    return stationary_covariance(A, np.outer(b, b))


@statement(
    "80",
    section="14.1",
    says="SGD with an EMA, as a system.",
    formula=r"\begin{aligned} \boldsymbol{\theta}_t &= \boldsymbol{\theta}_{t-1} - \eta\tilde{\boldsymbol{g}}_t\\ \boldsymbol{\theta}_{ema,t} &= \beta\boldsymbol{\theta}_{ema,t-1} + (1-\beta)\boldsymbol{\theta}_t \end{aligned}",
    verdict=DEFINITION,
    method="a step in numbers against (1)",
    printed=lambda theta, average, beta, eta, g: (
        theta - eta * g,
        beta * average + (1 - beta) * (theta - eta * g),
    ),
)
def system(step: Form, effort: Effort) -> Outcome:
    theta, average = step(2.0, 1.0, 0.9, 0.1, 3.0)
    exact = ema([1.7], 0.9, 1.0)[-1]
    return defined(
        math.isclose(theta, 1.7) and math.isclose(average, exact),
        f"θ = 1.7, then (1): {number(exact, 4)}",
        f"{number(theta, 4)}, {number(average, 4)}",
    )


def _noise(power: Form) -> Outcome:
    shown = []
    for eta in (1e-2, 1e-3, 1e-4):
        true = float(discrete(eta, 1.0, 0.5)[0, 0])
        shown.append((eta, power(eta, 1.0) / 2 / true))  # dθ = −θ ds + √power dW has variance power/2
    return truth(
        abs(shown[-1][1] - 1) < 1e-3,
        "the variance of SGD's iterates as η → 0",
        ", ".join(f"{ratio:.4f} of it at η = {eta:g}" for eta, ratio in shown),
    )


@statement(
    "81",
    section="14.1",
    says="The continuous limit: noise √(2ησ²)dW in the weights.",
    formula=r"\begin{aligned} d\boldsymbol{\theta}(s) &= -\nabla L(\boldsymbol{\theta}(s))ds + \sqrt{2\eta\sigma^2}d\boldsymbol{W}_1(s)\\ d\boldsymbol{\theta}_{ema}(s) &= \frac{1-\beta}{\eta}[\boldsymbol{\theta}(s) - \boldsymbol{\theta}_{ema}(s)]ds \end{aligned}",
    verdict=WRONG,
    method="stationary variance of the equation against SGD's exact one as η → 0",
    printed=lambda eta, s2: 2 * eta * s2,
    corrected=r"d\boldsymbol{\theta}(s)=-\nabla L\,ds+\sqrt{\eta\sigma^2}\,d\boldsymbol{W}_1(s)",
    right=lambda eta, s2: eta * s2,
    states="s = ηt, Var[g] = σ²",
    note="A step adds η²σ² in a time η: the noise is √(ησ²). √(2T)dW would have T = ησ²/2.",
)
def noise_of_the_limit(power: Form, effort: Effort) -> Outcome:
    return _noise(power)


def _relaxation(rate: Form) -> Outcome:
    h, kappa = 1.0, 2.0
    eta = 1e-4
    beta = 1 - kappa * eta
    true = discrete(eta, h, beta)
    drift = np.array([[h, 0.0], [-rate(eta, beta), rate(eta, beta)]])
    claimed = diffusion_covariance(drift, np.diag([eta, 0.0]))
    ratio, exact = float(claimed[1, 1] / claimed[0, 0]), float(true[1, 1] / true[0, 0])
    return truth(
        abs(ratio / exact - 1) < 1e-2,
        f"Var[θ_ema]/Var[θ] = {number(exact, 4)} (η = 10⁻⁴, 1 − β = 2·10⁻⁴, h = 1)",
        number(ratio, 4),
    )


@statement(
    "81-ema",
    section="14.1",
    says="In it the EMA relaxes to the weights at the rate (1 − β)/η.",
    formula=r"d\boldsymbol{\theta}_{ema}(s) = \frac{1-\beta}{\eta}[\boldsymbol{\theta}(s) - \boldsymbol{\theta}_{ema}(s)]ds",
    verdict=HOLDS,
    method="covariance of the pair against the exact discrete one, 1 − β ∝ η → 0",
    printed=lambda eta, beta: (1 - beta) / eta,
    states="η → 0",
)
def relaxation(rate: Form, effort: Effort) -> Outcome:
    return _relaxation(rate)


@statement(
    "82",
    section="14.1",
    says="The weights' equation again, with √(2ησ²)dW.",
    formula=r"d\boldsymbol{\theta}(s) = -\nabla L(\boldsymbol{\theta})ds + \sqrt{2\eta\sigma^2}d\boldsymbol{W}_1(s)",
    verdict=WRONG,
    method="stationary variance of the equation against SGD's exact one as η → 0",
    printed=lambda eta, s2: 2 * eta * s2,
    corrected=r"d\boldsymbol{\theta}(s)=-\nabla L\,ds+\sqrt{\eta\sigma^2}\,d\boldsymbol{W}_1(s)",
    right=lambda eta, s2: eta * s2,
    states="s = ηt, Var[g] = σ²",
)
def noise_again(power: Form, effort: Effort) -> Outcome:
    return _noise(power)


@statement(
    "83",
    section="14.1",
    says="The EMA's equation again, at the rate 1/(η(1 − β)).",
    formula=r"d\boldsymbol{\theta}_{ema}(s) = \frac{1}{\eta(1-\beta)}[\boldsymbol{\theta}(s) - \boldsymbol{\theta}_{ema}(s)]ds",
    verdict=WRONG,
    method="covariance of the pair against the exact discrete one, 1 − β ∝ η → 0",
    printed=lambda eta, beta: 1 / (eta * (1 - beta)),
    corrected=r"d\boldsymbol{\theta}_{ema}(s)=\frac{1-\beta}{\eta}[\boldsymbol{\theta}(s)-\boldsymbol{\theta}_{ema}(s)]ds",
    right=lambda eta, beta: (1 - beta) / eta,
    note="(81) has it right; rewritten, the slower average follows faster.",
)
def relaxation_again(rate: Form, effort: Effort) -> Outcome:
    return _relaxation(rate)


@statement(
    "14.1-lag",
    section="14.1",
    says="The EMA lags behind by about η/(1 − β) in s.",
    formula=r"\eta(1-\beta)^{-1}",
    verdict=APPROXIMATE,
    method="lag behind weights that move steadily",
    printed=lambda eta, beta: eta / (1 - beta),
    corrected=r"\eta\beta/(1-\beta)",
    right=lambda eta, beta: eta * beta / (1 - beta),
    note="Contradicts (83), whose lag would be η(1 − β).",
)
def lag(claimed: Form, effort: Effort) -> Outcome:
    errors = {}
    for beta in (0.9, 0.99, 0.999):
        average = ema(map(float, range(1, 20001)), beta, 0.0)[-1]
        errors[beta] = claimed(0.1, beta) / (0.1 * (20000 - average)) - 1
    return approximate(
        max(map(abs, errors.values())),
        0.12,
        "η × steps behind a ramp",
        ", ".join(f"{percent(e)} too long at β = {b:g}" for b, e in errors.items()),
    )


@statement(
    "84",
    section="14.2",
    says="The Langevin equation dθ = −∇L dt + √(2T)dW has the equilibrium e^(−L/T).",
    formula=r"d\boldsymbol{\theta} = -\nabla L(\boldsymbol{\theta})dt + \sqrt{2T}d\boldsymbol{W}(t)",
    verdict=HOLDS,
    method="sympy: no probability flux for any L; simulation of a quartic",
    printed=lambda L, T: -L / T,
    states="Z is finite",
)
def langevin(log_p: Form, effort: Effort) -> Outcome:
    import sympy

    x, T = sympy.Symbol("x"), sympy.Symbol("T", positive=True)
    L = sympy.Function("L")(x)
    p = sympy.exp(log_p(L, T))
    flux = sympy.simplify(-sympy.diff(L, x) * p - T * sympy.diff(p, x))
    rng, walkers, dt, temperature = effort.rng, effort.times(2000), 0.01, 0.5
    theta = np.zeros(walkers)
    for _ in range(600):
        theta += -(theta**3) * dt + math.sqrt(2 * temperature * dt) * rng.normal(size=walkers)
    grid = np.linspace(-4, 4, 2001)
    density = np.exp(-(grid**4) / 4 / temperature)
    exact = float((grid**2 * density).sum() / density.sum())
    error = float((theta**2).std() / math.sqrt(walkers))
    return truth(
        flux == 0 and abs(float((theta**2).mean()) - exact) < 5 * error + 0.02 * exact,
        f"flux 0; E[θ²] = {number(exact)} for L = θ⁴/4, T = 0.5",
        f"flux {flux}; simulated {number(float((theta**2).mean()))} ± {number(error, 1)}",
    )


@statement(
    "85",
    section="14.2",
    says="Langevin with an EMA that relaxes at the rate λ/τ, τ = 1/(1 − β).",
    formula=r"\begin{aligned} d\boldsymbol{\theta} &= -\nabla L(\boldsymbol{\theta})dt + \sqrt{2T_1}d\boldsymbol{W}_1(t)\\ d\boldsymbol{\theta}_{ema} &= \frac{\lambda}{\tau}[\boldsymbol{\theta} - \boldsymbol{\theta}_{ema}]dt \end{aligned}",
    verdict=CONDITIONAL,
    method="against (81)'s rate",
    printed=lambda eta, beta, strength: strength * (1 - beta),
    needs="λ = 1/η, so that the rate is that of (81); the text calls λ a coupling strength and leaves it free",
)
def coupled(rate: Form, effort: Effort) -> Outcome:
    eta, beta = 0.01, 0.99
    exact = (1 - beta) / eta
    return conditional(
        math.isclose(rate(eta, beta, 1.0), exact),
        math.isclose(rate(eta, beta, 1 / eta), exact),
        f"rate {number(exact)} at η = 0.01, β = 0.99",
        f"{number(rate(eta, beta, 1.0))} with λ = 1, {number(rate(eta, beta, 1 / eta))} with λ = 1/η",
    )


@statement(
    "86",
    section="14.2",
    says="Without the EMA's equation, the weights feel a force (λ/τ)θ_ema,∞.",
    formula=r"d\boldsymbol{\theta} = [-\nabla L(\boldsymbol{\theta}) + \frac{\lambda}{\tau}\boldsymbol{\theta}_{ema,\infty}]dt + \sqrt{2T_1}d\boldsymbol{W}(t)",
    verdict=WRONG,
    method="stationary mean of the weights on a quadratic around θ* = 3",
    printed=lambda strength, tau, average: strength / tau * average,
    corrected=r"d\boldsymbol{\theta}=-\nabla L(\boldsymbol{\theta})dt+\sqrt{2T_1}d\boldsymbol{W}(t)",
    right=lambda strength, tau, average: 0.0,
    states="(85)",
    note="In (85) the weights do not depend on the EMA: there is nothing to eliminate. The force would push them off the "
    "minimum, more the further it lies from the origin.",
)
def effective_force(force: Form, effort: Effort) -> Outcome:
    h, optimum = 1.0, 3.0
    mean = optimum + force(1.0, 10.0, optimum) / h  # −h(θ − θ*) + force = 0
    return truth(
        math.isclose(mean, optimum),
        f"E[θ] = θ* = {optimum:g}",
        f"{number(mean)} at λ = 1, τ = 10, θ_ema,∞ = 3",
    )


@statement(
    "87",
    section="14.3",
    says="The Fokker–Planck equation: ∂p/∂t = −∇·(pf) + ½tr(D∇²p), f = −∇L, D = 2T₁I.",
    formula=r"\frac{\partial p}{\partial t} = -\nabla \cdot (p \mathbf{f}) + \frac{1}{2}\text{tr}(D \nabla^2 p)",
    verdict=HOLDS,
    method="sympy: the exact density of an Ornstein–Uhlenbeck process put in",
    printed=0.5,
    states="D constant",
)
def fokker_planck(half: Form, effort: Effort) -> Outcome:
    import sympy

    x, t = sympy.symbols("x t", positive=True)
    h, T = sympy.Rational(3, 2), sympy.Rational(1, 3)
    variance = T / h * (1 - sympy.exp(-2 * h * t))
    p = sympy.exp(-((x - sympy.exp(-h * t)) ** 2) / (2 * variance)) / sympy.sqrt(2 * sympy.pi * variance)
    gap = sympy.diff(p, t) - (sympy.diff(h * x * p, x) + sympy.nsimplify(half) * 2 * T * sympy.diff(p, x, 2))
    values = [float(gap.subs({x: a, t: b})) for a, b in ((0.3, 0.5), (1.0, 1.0), (2.0, 0.2))]
    return truth(
        max(map(abs, values)) < 1e-12,
        "both sides equal",
        f"largest difference {number(max(map(abs, values)))} at three points",
    )


@statement(
    "88",
    section="14.3",
    says="Without an EMA the stationary density is e^(−L/T₁)/Z.",
    formula=r"p^*(\boldsymbol{\theta}) = \frac{1}{Z}\exp\left(-\frac{L(\boldsymbol{\theta})}{T_1}\right)",
    verdict=HOLDS,
    method="sympy: (87) on it, for any L, in two dimensions",
    printed=lambda L, T: -L / T,
    states="Z is finite",
)
def stationary_density(log_p: Form, effort: Effort) -> Outcome:
    import sympy

    x, y = sympy.symbols("x y")
    T = sympy.Symbol("T", positive=True)
    L = sympy.Function("L")(x, y)
    p = sympy.exp(log_p(L, T))
    change = sum(sympy.diff(sympy.diff(L, v) * p + T * sympy.diff(p, v), v) for v in (x, y))
    return truth(sympy.simplify(change) == 0, "∂p/∂t = 0", f"∂p/∂t = {sympy.simplify(change / p)} p")


@statement(
    "89",
    section="14.3",
    says="On long times the EMA obeys its own Fokker–Planck equation with diffusion smaller by (1 − β)/(1 + β).",
    formula=r"\frac{\partial p_{eff}}{\partial t} = -\nabla \cdot (p_{eff} \mathbf{f}_{eff}) + \frac{1}{2}\text{tr}(D_{eff} \nabla^2 p_{eff})",
    verdict=WRONG,
    method="exact mean square displacement of the EMA of free diffusion",
    printed=lambda beta: (1 - beta) / (1 + beta),
    corrected=r"D_{eff}=D\ \text{on times} \gg 1/(1-\beta)\text{; on shorter ones the EMA does not diffuse at all}",
    right=lambda beta: 1.0,
    note="In the long run the average goes wherever the weights go. It smooths, it does not slow them down.",
)
def effective_diffusion(factor: Form, effort: Effort) -> Outcome:
    rows = {}
    for beta in (0.9, 0.99):
        T = 100_000
        response = 1 - beta ** np.arange(1.0, T + 1)  # of the EMA to a kick k steps ago
        rows[beta] = float((response**2).sum() / T)
    return truth(
        all(abs(factor(b) / r - 1) < 0.01 for b, r in rows.items()),
        ", ".join(f"{number(r, 4)} of D at β = {b:g}" for b, r in rows.items()) + " after 10⁵ steps",
        ", ".join(number(factor(b)) for b in rows),
    )


@statement(
    "90",
    section="14.4",
    says="Theorem 7: in equilibrium θ has e^(−L/T) and θ_ema = θ.",
    formula=r"p^*(\boldsymbol{\theta}, \boldsymbol{\theta}_{ema}) = \frac{1}{Z}\exp\left(-\frac{L(\boldsymbol{\theta})}{T}\right) \cdot \delta(\boldsymbol{\theta}_{ema} - \boldsymbol{\theta})",
    verdict=APPROXIMATE,
    method="exact Var[θ − θ_ema]/Var[θ] of the discrete process",
    printed=0.0,
    states="η → 0 at fixed β",
    note="The share that is left is ηh/(1 − β + ηh) (nearly): 1 % at ηh = 0.001, β = 0.9, and half at β = 0.999.",
)
def tracks(spread: Form, effort: Effort) -> Outcome:
    def share(rate: float, beta: float) -> float:
        C = discrete(rate, 1.0, beta)
        return float((C[0, 0] - 2 * C[0, 1] + C[1, 1]) / C[0, 0])

    rows = {
        (rate, beta): share(rate, beta)
        for rate, beta in ((1e-4, 0.9), (1e-3, 0.9), (1e-3, 0.99), (1e-3, 0.999))
    }
    return approximate(
        abs(rows[1e-3, 0.9] - spread),
        0.02,
        "Var[θ − θ_ema] = 0",
        ", ".join(f"{percent(v)} of Var[θ] at ηh = {r:g}, β = {b:g}" for (r, b), v in rows.items()),
    )


@statement(
    "91",
    section="14.4",
    says="δ is the difference between the weights and their EMA.",
    formula=r"\boldsymbol{\delta} = \boldsymbol{\theta} - \boldsymbol{\theta}_{ema}",
    verdict=DEFINITION,
    method="zero mean, and uncorrelated with the EMA, in the stationary state",
    printed=lambda C: (C[0, 0] - 2 * C[0, 1] + C[1, 1], C[0, 1] - C[1, 1]),
)
def difference(moments: Form, effort: Effort) -> Outcome:
    variance, with_ema = moments(discrete(1e-3, 1.0, 0.99))
    return defined(
        variance > 0 and abs(with_ema) < 0.02 * variance,
        "a variance, and none shared with θ_ema",
        f"Var[δ] = {number(variance)}, Cov[δ, θ_ema] = {number(with_ema)}",
    )


@statement(
    "92",
    section="14.4",
    says="Given θ_ema, δ is N(0, ηT/(1 − β)).",
    formula=r"p(\boldsymbol{\delta}|\boldsymbol{\theta}_{ema}) \approx \mathcal{N}(0, \eta(1-\beta)^{-1}T I)",
    verdict=APPROXIMATE,
    method="exact Var[δ] of the discrete process, T = ησ²/2",
    printed=lambda eta, beta, T, h: eta * T / (1 - beta),
    corrected=r"\text{Var}[\delta]=\frac{\eta T}{1-\beta+\eta h}\ \text{in continuous time}",
    right=lambda eta, beta, T, h: eta * T / (1 - beta + eta * h),
    states="weak coupling",
    needs="1 − β ≫ ηh, 1 − β ≪ 1",
    note="Too large by ηh/(1 − β) of itself, and by about (1 − β)·3/2 because steps are discrete.",
)
def spread_of_difference(variance: Form, effort: Effort) -> Outcome:
    errors = {}
    for eta, beta in ((1e-4, 0.99), (1e-3, 0.99), (1e-4, 0.9), (1e-3, 0.999)):
        C = discrete(eta, 1.0, beta)
        true = float(C[0, 0] - 2 * C[0, 1] + C[1, 1])
        errors[eta, beta] = variance(eta, beta, eta / 2, 1.0) / true - 1
    return approximate(
        abs(errors[1e-4, 0.99]),
        0.05,
        "Var[θ − θ_ema]",
        ", ".join(f"{percent(e)} off at ηh = {eta:g}, β = {b:g}" for (eta, b), e in errors.items()),
    )


def _normal(x: np.ndarray | float, mean: np.ndarray | float, variance: float) -> np.ndarray:
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


def _printed_marginal(theta: np.ndarray, e: float, v: float, r: float) -> np.ndarray:
    """p(θ)·p(θ|θ_ema), Var θ = 1, Var θ_ema = v, correlation r."""
    return _normal(theta, 0.0, 1.0) * _normal(theta, r * e / math.sqrt(v), 1 - r * r)


def _right_marginal(theta: np.ndarray, e: float, v: float, r: float) -> np.ndarray:
    """p(θ)·p(θ_ema|θ)."""
    return _normal(theta, 0.0, 1.0) * _normal(e, r * math.sqrt(v) * theta, v * (1 - r * r))


@statement(
    "93",
    section="14.4",
    says="The density of θ_ema is ∫p(θ)p(θ|θ_ema)dθ.",
    formula=r"p(\boldsymbol{\theta}_{ema}) = \int p(\boldsymbol{\theta}) p(\boldsymbol{\theta}|\boldsymbol{\theta}_{ema})d\boldsymbol{\theta}\approx \frac{1}{Z_{eff}}\exp(-L(\boldsymbol{\theta}_{ema})/T_{eff})",
    verdict=WRONG,
    method="the integral for a Gaussian pair against the exact marginal",
    printed=_printed_marginal,
    corrected=r"p(\boldsymbol{\theta}_{ema})=\int p(\boldsymbol{\theta}_{ema}|\boldsymbol{\theta})\,p(\boldsymbol{\theta})\,d\boldsymbol{\theta}",
    right=_right_marginal,
    note="The condition is on the wrong side: as printed it is the density of something else, three times as wide.",
)
def marginal(integrand: Form, effort: Effort) -> Outcome:
    v, r = 0.5, math.sqrt(0.5)  # the EMA with κ = h
    theta = np.linspace(-10, 10, 4001)
    points = [0.0, 0.7, 1.5]
    got = [float(np.trapezoid(integrand(theta, e, v, r), theta)) for e in points]
    exact = [float(_normal(e, 0.0, v)) for e in points]
    grid = np.linspace(-12, 12, 601)
    total = float(np.trapezoid([np.trapezoid(integrand(theta, float(e), v, r), theta) for e in grid], grid))
    return truth(
        np.allclose(got, exact, rtol=1e-6),
        ", ".join(number(x) for x in exact) + " at θ_ema = 0, 0.7, 1.5; total 1",
        ", ".join(number(x) for x in got) + f"; total {number(total)}",
    )


def _temperature_figure() -> Curves:
    betas = [1 - 10 ** (-k / 8) for k in range(1, 33)]
    return Curves(
        "Effective temperature of the EMA, T_eff/T, ηh = 0.01",
        "1/(1 − β), steps",
        "T_eff/T",
        {
            "printed": [(1 / (1 - b), (1 + b) / (1 - b)) for b in betas],
            "right": [(1 / (1 - b), variance_factor(b, 0.99)) for b in betas],
        },
        log_x=True,
        log_y=True,
    )


@statement(
    "94",
    section="14.4",
    says="The EMA is in equilibrium at the temperature (1 + β)/(1 − β)·T.",
    formula=r"T_{eff} = \frac{1+\beta}{1-\beta}T",
    verdict=WRONG,
    method="exact Var[θ_ema]/Var[θ] of the discrete process",
    printed=lambda beta, rate: (1 + beta) / (1 - beta),
    corrected=r"T_{eff}=\frac{1-\beta}{1+\beta}\cdot\frac{1+\beta\rho}{1-\beta\rho}\,T\approx\frac{1-\beta}{1-\beta+\eta h}\,T\leq T",
    right=lambda beta, rate: variance_factor(beta, 1 - rate),
    note="Upside down: it contradicts (10), and every purpose of an average. It also depends on the direction (h), so "
    "that no single temperature describes it.",
    figure=_temperature_figure,
)
def temperature(factor: Form, effort: Effort) -> Outcome:
    rows = []
    for beta, rate in ((0.9, 0.1), (0.99, 0.01), (0.999, 0.01)):
        C = discrete(rate, 1.0, beta)
        rows.append((float(C[1, 1] / C[0, 0]), factor(beta, rate)))
    return truth(
        all(math.isclose(e, c, rel_tol=1e-6) for e, c in rows),
        ", ".join(number(e) for e, _ in rows)
        + " times T at (β, ηh) = (0.9, 0.1), (0.99, 0.01), (0.999, 0.01)",
        ", ".join(number(c) for _, c in rows),
    )


@statement(
    "14.4-hotter",
    section="14.4",
    says="EMA weights seem hotter: more variance, and easier to escape from local minima.",
    verdict=WRONG,
    method="exact variance, and the crossings of a barrier by both, simulated",
    printed="more",
    corrected=r"\text{less variance; the average escapes nowhere that the weights do not go}",
    right="less",
    states="(94)",
)
def hotter(claimed: Form, effort: Effort) -> Outcome:
    q = Quadratic(eta=0.05, beta=0.98)
    rng, walkers = effort.rng, effort.times(300)
    theta, average = -np.ones(walkers), -np.ones(walkers)
    crossings = np.zeros(2)
    for _ in range(3000):  # the double well (θ² − 1)²/4
        before = np.sign(theta), np.sign(average)
        theta = theta - 0.1 * (theta**3 - theta) + 0.22 * rng.normal(size=walkers)
        average = 0.98 * average + 0.02 * theta
        crossings += [(np.sign(theta) != before[0]).sum(), (np.sign(average) != before[1]).sum()]
    measured = "more" if q.factor > 1 or crossings[1] > crossings[0] else "less"
    return truth(
        claimed == measured,
        f"{claimed} variance and crossings than the raw weights",
        f"variance {number(q.factor)} of theirs; {int(crossings[1])} crossings of a barrier against {int(crossings[0])}",
    )
