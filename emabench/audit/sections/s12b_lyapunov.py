"""§12.3 and §12.4: the Lyapunov function, and the three phases."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from emabench.audit.sections.s07_theory import QUADRATIC_BOUND, quadratic_bound, quadratics, where
from emabench.audit.statement import (
    APPROXIMATE,
    DEFINITION,
    HOLDS,
    NOT_CHECKABLE,
    WRONG,
    Effort,
    Form,
    Outcome,
    approximate,
    defined,
    statement,
    truth,
    undefined,
)
from emabench.audit.tools import (
    Quadratic,
    ema,
    number,
    percent,
    search,
    stationary_covariance,
    variance_factor,
)


@statement(
    "49",
    section="12.3",
    says="The Lyapunov function: the EMA's squared distance to θ* plus λ times the weights'.",
    formula=r"V_t = \|\boldsymbol{\theta}_{ema,t} - \boldsymbol{\theta}^*\|^2 + \lambda\|\boldsymbol{\theta}_t - \boldsymbol{\theta}^*\|^2",
    verdict=DEFINITION,
    method="zero at the optimum only",
    printed=lambda e, d, lam: e * e + lam * d * d,
    states="λ > 0",
)
def lyapunov(V: Form, effort: Effort) -> Outcome:
    points = effort.rng.normal(size=(200, 2))
    positive = all(V(e, d, 0.3) > 0 for e, d in points)
    return defined(
        positive and V(0, 0, 0.3) == 0,
        "positive away from θ*, zero there",
        f"positive at 200 random points: {positive}",
    )


@statement(
    "50",
    section="12.3",
    says="One step later: the EMA has moved towards θ_t, the weights to θ_t − ηg.",
    formula=r"V_{t+1} = \|\beta(\boldsymbol{\theta}_{ema,t}-\boldsymbol{\theta}^*) + (1-\beta)(\boldsymbol{\theta}_t-\boldsymbol{\theta}^*)\|^2 + \lambda\|(\boldsymbol{\theta}_t - \eta\tilde{\boldsymbol{g}}_t) - \boldsymbol{\theta}^*\|^2",
    verdict=WRONG,
    method="a step of (1) and (80) in numbers",
    printed=lambda beta, e, d, step: beta * e + (1 - beta) * d,
    corrected=r"V_{t+1}=\|\beta(\boldsymbol{\theta}_{ema,t}-\boldsymbol{\theta}^*)+(1-\beta)(\boldsymbol{\theta}_{t+1}-\boldsymbol{\theta}^*)\|^2+\lambda\|\boldsymbol{\theta}_{t+1}-\boldsymbol{\theta}^*\|^2",
    right=lambda beta, e, d, step: beta * e + (1 - beta) * (d - step),
    states="(1), (80)",
    note="By (1) the EMA at t + 1 takes θ_{t+1}, not θ_t.",
)
def one_step(average: Form, effort: Effort) -> Outcome:
    beta, e, d, step = 0.9, 2.0, 1.0, 0.5
    exact = ema([d - step], beta, e)[-1]
    return truth(
        math.isclose(average(beta, e, d, step), exact),
        f"θ_ema,t+1 − θ* = {number(exact, 4)}",
        number(average(beta, e, d, step), 4),
    )


@statement(
    "51",
    section="12.3",
    says="The square of βd_ema + (1 − β)d_t, expanded.",
    formula=r"\|\beta\boldsymbol{d}_{ema} + (1-\beta)\boldsymbol{d}_t\|^2 = \beta^2\|\boldsymbol{d}_{ema}\|^2 + (1-\beta)^2\|\boldsymbol{d}_t\|^2 + 2\beta(1-\beta)\langle\boldsymbol{d}_{ema},\boldsymbol{d}_t\rangle",
    verdict=HOLDS,
    method="sympy, vectors of three",
    printed=lambda beta, ee, dd, ed: beta**2 * ee + (1 - beta) ** 2 * dd + 2 * beta * (1 - beta) * ed,
)
def square(expansion: Form, effort: Effort) -> Outcome:
    import sympy

    beta = sympy.Symbol("beta")
    e, d = sympy.Matrix(sympy.symbols("e1:4")), sympy.Matrix(sympy.symbols("d1:4"))
    whole = beta * e + (1 - beta) * d
    gap = sympy.expand(whole.dot(whole) - expansion(beta, e.dot(e), d.dot(d), e.dot(d)))
    return truth(gap == 0, "‖βd_ema + (1 − β)d_t‖²", f"difference {gap}")


def _next_V(q: Quadratic, e: float, d: float, lam: float) -> float:
    """E[V_{t+1}] from distances e of the EMA and d of the weights, by (1) and (80)."""
    noise = q.eta**2 * q.sigma2
    return (
        (q.beta * e + (1 - q.beta) * q.rho * d) ** 2
        + lam * (q.rho * d) ** 2
        + ((1 - q.beta) ** 2 + lam) * noise
    )


def _lambda_right(q: Quadratic) -> float:
    return 2 * (1 - q.beta) / (q.eta * q.h)


def _c_right(q: Quadratic) -> float:
    return min(1 - q.beta, q.eta * q.h / 2)


def _states(effort: Effort, count: int) -> Iterator[tuple[Quadratic, float, float]]:
    rng = effort.rng
    for q, _ in quadratics(effort, count):
        scale = math.sqrt(q.eta * q.sigma2 / q.h) if q.sigma2 else 1.0
        for e, d in ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0), tuple(rng.normal(size=2))):
            yield q, float(e) * scale, float(d) * scale


@statement(
    "52",
    section="12.3",
    says="With λ = β²/(1 − β): V_{t+1} ≤ (1 − c)‖d_t‖² − 2η(1 − β)⟨d_ema, ∇L⟩ + η²λσ² for a c > 0.",
    formula=r"V_{t+1} \leq (1-c)\|\boldsymbol{d}_t\|^2 - 2\eta(1-\beta)\langle \boldsymbol{d}_{ema}, \nabla L(\boldsymbol{\theta}_t)\rangle + \eta^2\lambda\sigma^2",
    verdict=WRONG,
    method="exact E[V_{t+1}] on quadratics, with the most generous c, 0; search over states and parameters",
    printed=lambda q, e, d: (
        q.beta**2 / (1 - q.beta),
        d * d - 2 * q.eta * (1 - q.beta) * e * q.h * d + q.eta**2 * q.beta**2 / (1 - q.beta) * q.sigma2,
    ),
    corrected=r"\mathbb{E}[V_{t+1}] \leq (1-c)V_t+\eta^2(\lambda+1-\beta)\sigma^2,\quad \lambda=\frac{2(1-\beta)}{\eta\mu},\ c=\min\left(1-\beta,\tfrac{\eta\mu}{2}\right),\ \eta\leq 1/L",
    right=lambda q, e, d: (
        _lambda_right(q),
        (1 - _c_right(q)) * (e * e + _lambda_right(q) * d * d)
        + q.eta**2 * (_lambda_right(q) + 1 - q.beta) * q.sigma2,
    ),
    states="λ = β²/(1 − β), c > 0",
    note="β²‖d_ema‖² is nowhere on the right: with the weights at θ* (d_t = 0) and the EMA elsewhere the left side is "
    "positive, the right side noise alone.",
)
def descent(inequality: Form, effort: Effort) -> Outcome:
    worst, at, tried = -math.inf, "nowhere", 0
    for q, e, d in _states(effort, effort.times(1000)):
        lam, right = inequality(q, e, d)
        left = _next_V(q, e, d, lam)
        gap = (left - right) / max(left, abs(right), 1e-300)
        tried += 1
        if gap > worst:
            worst, at = (
                gap,
                f"d_ema = {number(e)}, d_t = {number(d)}, β = {number(q.beta, 4)}, ηh = {number(q.eta * q.h)}, σ² = {number(q.sigma2)}",
            )
    return truth(
        worst < 1e-9,
        f"left ≤ right in {tried} states",
        f"left − right up to {number(worst)} of the larger side, at {at}",
    )


@statement(
    "53",
    section="12.3",
    says="By convexity ⟨d_ema, ∇L(θ_t)⟩ ≥ L(θ_ema) − L(θ_t) + μ‖d_ema‖²/2.",
    formula=r"\langle \boldsymbol{d}_{ema}, \nabla L(\boldsymbol{\theta}_t)\rangle \geq L(\boldsymbol{\theta}_{ema,t}) - L(\boldsymbol{\theta}_t) + \mu\|\boldsymbol{d}_{ema}\|^2/2",
    verdict=WRONG,
    method="search over strongly convex losses and states",
    printed=lambda L, g, mu, e, t: (e * g(t), L(e) - L(t) + mu * e * e / 2),
    corrected=r"\langle \boldsymbol{\theta}_t-\boldsymbol{\theta}_{ema,t},\nabla L(\boldsymbol{\theta}_t)\rangle \geq L(\boldsymbol{\theta}_t)-L(\boldsymbol{\theta}_{ema,t})+\tfrac{\mu}{2}\|\boldsymbol{\theta}_t-\boldsymbol{\theta}_{ema,t}\|^2",
    right=lambda L, g, mu, e, t: ((t - e) * g(t), L(t) - L(e) + mu * (t - e) ** 2 / 2),
    states="L μ-strongly convex",
    note="At θ_t = θ* the gradient is zero: the left side is 0, the right side is not. Convexity speaks of the step "
    "between θ_t and θ_ema, with the other sign.",
)
def key_inequality(sides: Form, effort: Effort) -> Outcome:
    rng = effort.rng
    losses = {
        "θ²/2": (lambda x: x * x / 2, lambda x: x, 1.0),
        "θ² + θ⁴": (lambda x: x * x + x**4, lambda x: 2 * x + 4 * x**3, 2.0),
        "θ²/2 + log cosh θ": (
            lambda x: x * x / 2 + float(np.logaddexp(x, -x)),
            lambda x: x + math.tanh(x),
            1.0,
        ),
    }
    worst, at, tried = -math.inf, "", 0
    for name, (L, g, mu) in losses.items():
        points = [(1.0, 0.0), (-1.0, 1.0), *rng.normal(size=(effort.times(500), 2)) * 2]
        for e, t in points:
            left, right = sides(L, g, mu, float(e), float(t))
            tried += 1
            if right - left > worst:
                worst, at = right - left, f"{name}, θ_ema = {number(float(e))}, θ_t = {number(float(t))}"
    return truth(
        worst < 1e-9,
        f"left ≥ right in {tried} cases (θ* = 0)",
        f"right exceeds left by {number(worst)} at {at}",
    )


@statement(
    "54",
    section="12.3",
    says="So E[V_{t+1}] ≤ (1 − c)V_t + η²λσ² for a c > 0, λ = β²/(1 − β).",
    formula=r"\mathbb{E}[V_{t+1}|\mathcal{F}_t] \leq (1-c)V_t + \eta^2\lambda\sigma^2",
    verdict=WRONG,
    method="the largest c that a quadratic allows (generalised eigenvalue), and the noise of one step",
    printed=lambda q: (q.beta**2 / (1 - q.beta), 0.0, q.beta**2 / (1 - q.beta)),
    corrected=r"\mathbb{E}[V_{t+1}|\mathcal{F}_t]\leq(1-c)V_t+\eta^2(\lambda+1-\beta)\sigma^2,\quad\lambda=\frac{2(1-\beta)}{\eta\mu},\ c=\min\left(1-\beta,\tfrac{\eta\mu}{2}\right)",
    right=lambda q: (_lambda_right(q), _c_right(q), _lambda_right(q) + 1 - q.beta),
    states="λ = β²/(1 − β), some c > 0",
    note="λ has to grow like 1/(ημ); with β²/(1 − β) V grows in the first step whenever λ < (1 − β)²ρ²/(1 − ρ²). The "
    "noise that reaches the EMA in the same step, (1 − β)²η²σ², is left out.",
)
def contraction(claim: Form, effort: Effort) -> Outcome:
    growing = noisy = tried = 0
    worst = -math.inf
    for q, _ in quadratics(effort, effort.times(1000)):
        lam, c, noise = claim(q)
        if lam < 1e-12:
            continue
        P = np.diag([1.0, lam])
        A = np.array([[q.beta, (1 - q.beta) * q.rho], [0.0, q.rho]])
        root = np.diag([1.0, 1 / math.sqrt(lam)])
        rate = float(np.linalg.eigvalsh(root @ A.T @ P @ A @ root).max())
        tried += 1
        growing += rate > 1 - c + 1e-9
        worst = max(worst, rate)
        noisy += ((1 - q.beta) ** 2 + lam) * q.eta**2 * q.sigma2 > noise * q.eta**2 * q.sigma2 * (1 + 1e-12)
    return truth(
        growing == noisy == 0,
        "V contracts, and the noise of a step is within its term, for every quadratic",
        f"V grows in {growing} of {tried} (up to {number(worst)}-fold a step); the noise exceeds its term in {noisy}",
    )


@statement(
    "54-limit",
    section="12.3",
    says="So V_t converges to O(η²σ²).",
    verdict=WRONG,
    method="slope of the exact stationary V in η",
    printed=2.0,
    corrected=r"V_\infty=\mathcal{O}(\eta\sigma^2/\mu)",
    right=1.0,
    states="(54)",
    note="η²λσ² comes in at every step and leaves at the rate c ∝ ημ.",
)
def limit_of_V(slope: Form, effort: Effort) -> Outcome:
    etas = np.array([1e-5, 1e-4, 1e-3])
    values = []
    for eta in etas:
        q = Quadratic(eta=float(eta), beta=0.9)
        A = np.array([[q.beta, (1 - q.beta) * q.rho], [0.0, q.rho]])
        b = q.eta * np.array([1 - q.beta, 1.0])
        C = stationary_covariance(A, np.outer(b, b))
        values.append(C[0, 0] + q.beta**2 / (1 - q.beta) * C[1, 1])
    fitted = float(np.polyfit(np.log(etas), np.log(values), 1)[0])
    return truth(abs(fitted - slope) < 0.05, f"V ∝ η^{fitted:.3f} (exact, β = 0.9)", f"η^{slope:g}")


@statement(
    "55",
    section="12.4",
    says="Phase 1: E‖θ_t − θ*‖² ≤ (1 − μη)^t‖θ_0 − θ*‖².",
    formula=r"\mathbb{E}[\|\boldsymbol{\theta}_t - \boldsymbol{\theta}^*\|^2] \leq (1 - \mu\eta)^t\|\boldsymbol{\theta}_0 - \boldsymbol{\theta}^*\|^2",
    verdict=WRONG,
    method="exact moments on quadratics; search",
    printed=lambda q, t: (1 - q.h * q.eta) ** t * q.start**2,
    corrected=r"\mathbb{E}\|\boldsymbol{\theta}_t-\boldsymbol{\theta}^*\|^2\leq(1-\mu\eta)^t\|\boldsymbol{\theta}_0-\boldsymbol{\theta}^*\|^2+\frac{\eta\sigma^2}{\mu},\quad \eta\leq 1/L",
    right=lambda q, t: (1 - q.h * q.eta) ** t * q.start**2 + q.eta * q.sigma2 / q.h,
    states="SGD with noise of variance σ², t ≤ τ_1 of (60)",
    note="Noise has a floor; the bound has none. Without noise it holds for η ≤ 1/L.",
)
def phase_1(bound: Form, effort: Effort) -> Outcome:
    phase = (
        (q, T, math.log(1 / (q.h * q.eta)) / (q.h * q.eta)) for q, T in quadratics(effort, effort.times(3000))
    )
    within = ((q, min(T, int(tau_1))) for q, T, tau_1 in phase if tau_1 >= 1)
    cases = ((where(q, T), 2 / q.h * q.iterate_excess(T), bound(q, T)) for q, T in within)
    found = search(case for case in cases if case[2] > 1e-12)
    return truth(
        found.clean,
        f"no violation in {found.tried} quadratics",
        f"{number(found.worst)} times the bound at {found.where}",
    )


@statement(
    "12.4-early",
    section="12.4",
    says="Early on, the EMA helps little: SGD's own progress counts.",
    verdict=HOLDS,
    method="exact losses of both before half of the distance is gone",
    printed=lambda q, t: q.ema_excess(t),
    states="t well below τ_1",
)
def early_phase(loss: Form, effort: Effort) -> Outcome:
    q = Quadratic(eta=0.01, beta=0.99, start=10.0)
    t = 50
    return truth(
        loss(q, t) >= q.iterate_excess(t),
        "the EMA no better at step 50 of 460",
        f"{number(loss(q, t))} against {number(q.iterate_excess(t))}",
    )


@statement(
    "56",
    section="12.4",
    says="Between θ_t and its EMA there is at most (1 − β)^(τ_1) max_s|θ_s − θ_0|.",
    formula=r"\rho_t \leq (1-\beta)^{\tau_1} \max_s |\boldsymbol{\theta}_s - \boldsymbol{\theta}_0|",
    verdict=WRONG,
    method="search over paths, β and τ_1",
    printed=lambda beta, tau, path: (1 - beta) ** tau * float(np.abs(path - path[0]).max()),
    corrected=r"|\boldsymbol{\theta}_t-\boldsymbol{\theta}_{ema,t}|\leq\frac{\beta}{1-\beta}\max_s|\boldsymbol{\theta}_s-\boldsymbol{\theta}_{s-1}|\quad(\boldsymbol{\theta}_{ema,0}=\boldsymbol{\theta}_0)",
    right=lambda beta, tau, path: beta / (1 - beta) * float(np.abs(np.diff(path)).max()),
    note="Weights that keep moving keep their EMA behind, by β/(1 − β) steps: no power of 1 − β makes that vanish.",
)
def lag(bound: Form, effort: Effort) -> Outcome:
    rng = effort.rng

    def cases() -> Iterator[tuple[str, float, float]]:
        for trial in range(effort.times(300)):
            beta, tau = float(rng.uniform(0.1, 0.99)), int(rng.integers(1, 20))
            T = tau + int(rng.integers(5, 200))
            path = np.arange(T + 1.0) if trial % 3 == 0 else np.cumsum(rng.normal(size=T + 1))
            average = ema(path[1:], beta, float(path[0]))
            gap = max(abs(path[t] - average[t - 1]) for t in range(tau, T + 1))
            yield f"β = {beta:.2f}, τ_1 = {tau}", float(gap), bound(beta, tau, path)

    found = search(cases())
    return truth(
        found.clean,
        f"no violation in {found.tried} paths",
        f"{number(found.worst)} times the bound at {found.where}",
    )


@statement(
    "57",
    section="12.4",
    says="Phase 2: the excess loss is at most (1 − μη/2)^(t−τ_1) + η²σ²/((1 − β)²μ).",
    formula=r"\mathbb{E}[L(\boldsymbol{\theta}_{ema,t})] - L^* \leq \left(1 - \frac{\mu\eta}{2}\right)^{t-\tau_1} + \frac{\eta^2\sigma^2}{(1-\beta)^2\mu}",
    verdict=WRONG,
    method="exact moments on quadratics after τ_1 of (60); search",
    printed=lambda q, t, tau: (
        (1 - q.h * q.eta / 2) ** (t - tau) + q.eta**2 * q.sigma2 / ((1 - q.beta) ** 2 * q.h)
    ),
    corrected=QUADRATIC_BOUND,
    right=lambda q, t, tau: quadratic_bound(q, t),
    states="t > τ_1",
    note="The first term is a pure number and knows nothing of the distance at τ_1; the second is "
    "a length to the fourth over a loss",
)
def phase_2(bound: Form, effort: Effort) -> Outcome:
    rng = effort.rng

    def cases() -> Iterator[tuple[str, float, float]]:
        for q, _ in quadratics(effort, effort.times(3000)):
            tau = math.log(1 / (q.eta * q.h)) / (q.eta * q.h)
            t = int(tau * (1 + rng.uniform(0, 3))) + 1
            yield where(q, t), q.ema_excess(t), bound(q, t, tau)

    found = search(case for case in cases() if case[2] > 1e-12)
    return truth(
        found.clean,
        f"no violation in {found.tried} quadratics",
        f"{number(found.worst)} times the bound at {found.where}",
    )


@statement(
    "58",
    section="12.4",
    says="Phase 3: in the end the excess loss is η²(1 − β)²σ²/(2μ).",
    formula=r"\lim_{t\to\infty}\mathbb{E}[L(\boldsymbol{\theta}_{ema,t})] - L^* = \frac{\eta^2(1-\beta)^2\sigma^2}{2\mu}",
    verdict=WRONG,
    method="exact stationary loss on quadratics (Lyapunov equation)",
    printed=lambda q: q.eta**2 * (1 - q.beta) ** 2 * q.sigma2 / (2 * q.h),
    corrected=r"\lim_{t\to\infty}\mathbb{E}[L(\boldsymbol{\theta}_{ema,t})]-L^*=\frac{\eta\sigma^2}{2(2-\eta h)}\cdot\frac{1-\beta}{1+\beta}\cdot\frac{1+\beta\rho}{1-\beta\rho}\quad\text{(quadratic)}",
    right=lambda q: q.eta * q.sigma2 / (2 * (2 - q.eta * q.h)) * variance_factor(q.beta, q.rho),
    note="The article has three floors: this one, (1 − β)/(1 + β) in (32) and 1/(1 − β)² in (57). None is right.",
)
def final_floor(floor: Form, effort: Effort) -> Outcome:
    ratios = []
    for eta, h, beta in ((0.1, 1.0, 0.9), (0.01, 5.0, 0.99), (0.001, 0.3, 0.999)):
        q = Quadratic(h, eta, 2.0, beta)
        A = np.array([[q.rho, 0.0], [(1 - beta) * q.rho, beta]])
        b = eta * math.sqrt(2.0) * np.array([1.0, 1 - beta])
        exact = h / 2 * float(stationary_covariance(A, np.outer(b, b))[1, 1])
        ratios.append(floor(q) / exact)
    return truth(
        all(abs(r - 1) < 1e-6 for r in ratios),
        "the exact floor, in three settings",
        ", ".join(f"{number(r)} of it" for r in ratios),
    )


@statement(
    "59",
    section="12.4",
    says="The three phases together.",
    formula=r"\mathbb{E}[L(\boldsymbol{\theta}_{ema,T})] - L^* = \begin{cases} \text{phase 1 fast decay} & T \leq \tau_1\\ \text{phase 2 linear decay} + \text{steady-state noise} & \tau_1 < T \leq \tau_2\\ \text{steady-state noise dominates} & T > \tau_2 \end{cases}",
    verdict=NOT_CHECKABLE,
    method="what the statement leaves open",
    printed=("any quantity: the cases are words",),
)
def three_phases(missing: Form, effort: Effort) -> Outcome:
    return undefined(missing, "a bound in each case")


@statement(
    "60",
    section="12.4",
    says="Phase 3 begins at τ_2 ≈ −log(η²σ²)/(ημ).",
    formula=r"\tau_1 \approx \frac{\log(1/\eta\mu)}{\eta\mu}, \quad \tau_2 \approx -\frac{\log(\eta^2\sigma^2)}{\eta\mu}",
    verdict=WRONG,
    method="the same training in other units of the weights; the step at which bias and floor meet",
    printed=lambda q: -math.log(q.eta**2 * q.sigma2) / (q.eta * q.h),
    corrected=r"\tau_2\approx\frac{1}{2\eta\mu}\ln\frac{2\mu\|\boldsymbol{\theta}_0-\boldsymbol{\theta}^*\|^2}{\eta\sigma^2}",
    right=lambda q: math.log(2 * q.h * q.start**2 / (q.eta * q.sigma2)) / (2 * q.eta * q.h),
    note="The logarithm of a quantity with units: measure the weights in thousandths and τ_2 changes. It may also come "
    "before τ_1.",
)
def phase_times(tau: Form, effort: Effort) -> Outcome:
    q = Quadratic(h=1.0, eta=0.01, sigma2=1.0, start=10.0)
    s = 1000.0  # weights in thousandths: θ → sθ at the same loss
    scaled = Quadratic(q.h / s**2, q.eta * s**2, q.sigma2 / s**2, q.beta, q.start * s)
    floor = q.eta * q.sigma2 / (2 * (2 - q.eta * q.h))
    meets = next(t for t in range(10**6) if q.h / 2 * q.start**2 * q.rho ** (2 * t) < floor)
    return truth(
        math.isclose(tau(q), tau(scaled), rel_tol=1e-9) and abs(tau(q) / meets - 1) < 0.05,
        f"step {meets}, in whatever units",
        f"{number(tau(q))}, and {number(tau(scaled))} with the weights in thousandths",
    )


@statement(
    "60-tau1",
    section="12.4",
    says="Phase 1 lasts about log(1/(ημ))/(ημ) steps.",
    formula=r"\tau_1 \approx \frac{\log(1/\eta\mu)}{\eta\mu}",
    verdict=APPROXIMATE,
    method="the step at which the distance has fallen to ημ of itself",
    printed=lambda rate: math.log(1 / rate) / rate,
    note="Where the phase ends is a convention: here, when ημ of the distance is left. Too many steps by ημ/2 of them.",
)
def phase_1_time(tau: Form, effort: Effort) -> Outcome:
    errors = {rate: tau(rate) / (math.log(rate) / math.log1p(-rate)) - 1 for rate in (0.001, 0.01, 0.1)}
    return approximate(
        max(errors.values()),
        0.06,
        "(1 − ημ)^τ = ημ",
        ", ".join(f"{percent(e)} too long at ημ = {r:g}" for r, e in errors.items()),
    )
