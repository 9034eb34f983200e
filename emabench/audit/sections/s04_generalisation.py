"""§4: bounds on generalisation, sensitivity and sharpness."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from emabench.audit.statement import (
    CONDITIONAL,
    DEFINITION,
    WRONG,
    Effort,
    Form,
    Outcome,
    conditional,
    defined,
    statement,
    truth,
)
from emabench.audit.tools import ema_weights, number, percent, search, variance_factor

Loss = Callable[[float], float]


@statement(
    "18",
    section="4.1",
    says="PAC-Bayes: for an L-Lipschitz loss the test loss is at most the training loss plus √((KL + log 1/δ)/2n).",
    formula=r"\mathbb{E}_{test}[L(\boldsymbol{\theta}_{ema})] \leq \mathbb{E}_{train}[L(\boldsymbol{\theta}_{ema})] + \sqrt{\frac{KL(\boldsymbol{\theta}_{ema}\|\boldsymbol{\theta}_0) + \log(1/\delta)}{2n}}",
    verdict=WRONG,
    method="frequency of failure over data sets: loss M|θ − x|, Gibbs posterior on a grid of θ",
    printed=lambda kl, n, delta, M: math.sqrt((kl + math.log(1 / delta)) / (2 * n)),
    corrected=r"\mathbb{E}_{\theta\sim Q}[L_{test}] \leq \mathbb{E}_{\theta\sim Q}[L_{train}] + M\sqrt{\frac{KL(Q\|P)+\log(2\sqrt{n}/\delta)}{2n}}\quad\text{with probability } 1-\delta,\ L\in[0,M],\ P\text{ fixed before the data}",
    right=lambda kl, n, delta, M: M * math.sqrt((kl + math.log(2 * math.sqrt(n) / delta)) / (2 * n)),
    states="L-Lipschitz loss",
    note="A Lipschitz loss need not be bounded, and the bound has no unit of loss: multiply the loss by ten and it "
    "fails. KL is of distributions: between two single points it is infinite.",
)
def pac_bayes(width: Form, effort: Effort) -> Outcome:
    rng, n, delta, sets = effort.rng, 50, 0.05, effort.times(600)
    theta = np.linspace(0, 1, 21)
    failures = {}
    for M in (1.0, 10.0):
        failed = 0
        for _ in range(sets):
            p = rng.uniform(0.2, 0.8)
            x = (rng.uniform(size=n) < p).astype(float)
            train_loss = M * np.abs(theta[:, None] - x).mean(1)
            test = M * (p * np.abs(theta - 1) + (1 - p) * np.abs(theta))
            q = np.exp(-(train_loss - train_loss.min()) * n / M)
            q /= q.sum()
            kl = float((q * np.log(q * len(theta) + 1e-300)).sum())
            failed += q @ test > q @ train_loss + width(kl, n, delta, M)
        failures[M] = failed / sets
    error = math.sqrt(delta * (1 - delta) / sets)
    return truth(
        all(rate <= delta + 4 * error for rate in failures.values()),
        f"fails for at most {percent(delta)} of data sets (± {percent(error)})",
        ", ".join(f"{percent(rate, 3)} with M = {M:g}" for M, rate in failures.items()),
    )


@statement(
    "19",
    section="4.1",
    says="KL(θ_ema‖θ_0) ≤ E_t[KL(θ_t‖θ_0)].",
    formula=r"KL(\boldsymbol{\theta}_{ema}\|\boldsymbol{\theta}_0) \leq \mathbb{E}_t[KL(\boldsymbol{\theta}_t\|\boldsymbol{\theta}_0)]",
    verdict=CONDITIONAL,
    method="closed-form KL of Gaussians; search over paths; a counter-example over seeds",
    printed=lambda beta, T: ema_weights([beta] * T),
    needs="each weight vector stands for a Gaussian of one fixed covariance around it, and E_t weighs steps as the EMA does",
    note="Between points KL is infinite. Read as distributions over seeds it is false: weights that are N(0, 1) at every "
    "step, independently, have KL 0 to a prior N(0, 1), their average has not. With E_t uniform it is false too.",
)
def kl_of_average(weights: Form, effort: Effort) -> Outcome:
    rng = effort.rng

    def cases(uniform: bool) -> Iterator[tuple[str, float, float]]:
        for trial in range(effort.times(300)):
            T = int(rng.integers(2, 30))
            beta = float(rng.uniform(0.1, 0.99))
            path = np.cumsum(rng.normal(size=(T + 1, 3)), axis=0) * rng.uniform(0.1, 3)
            kl = ((path - path[0]) ** 2).sum(1) / 2
            w = np.array(weights(beta, T))
            average = w @ path
            mean = kl.mean() if uniform else w @ kl
            yield f"trial {trial}", float(((average - path[0]) ** 2).sum() / 2), float(mean)

    weighted, uniform = search(cases(False)), search(cases(True))
    share = (1 - 0.9) / (1 + 0.9)
    over_seeds = (share - 1 - math.log(share)) / 2  # KL(N(0, share) ‖ N(0, 1)); the right side is 0
    return conditional(
        weighted.clean and uniform.clean and over_seeds <= 0,
        weighted.clean,
        "left ≤ right",
        f"Gaussians, EMA's weights: {weighted.tried} paths, at most {weighted.worst:.3f} of the right side; E_t uniform: "
        f"up to {uniform.worst:.2f} of it; over seeds: {number(over_seeds)} > 0 at β = 0.9",
    )


@statement(
    "4.1-last",
    section="4.1",
    says="The EMA's KL to the start is usually smaller than the last weights'.",
    verdict=CONDITIONAL,
    method="closed-form KL of Gaussians on noisy runs that drift away from the start",
    printed=lambda beta, T: ema_weights([beta] * T),
    needs="Gaussians of one fixed covariance; training still moves away from the start, or the window averages noise",
)
def nearer_to_start(weights: Form, effort: Effort) -> Outcome:
    rng, T, runs = effort.rng, 200, effort.times(300)
    w = np.array(weights(0.95, T))
    shares = []
    for drift in (0.1, -0.1):  # away from the start for ever, or back to it
        nearer = 0
        for _ in range(runs):
            centre = (
                drift * np.arange(T + 1)
                if drift > 0
                else -drift * np.minimum(np.arange(T + 1), T - np.arange(T + 1)) * 2
            )
            path = centre[:, None] + np.concatenate([np.zeros((1, 5)), 0.3 * rng.normal(size=(T, 5))])
            nearer += ((w @ path) ** 2).sum() < (path[-1] ** 2).sum()
        shares.append(nearer / runs)
    return conditional(
        min(shares) > 0.9,
        shares[0] > 0.9,
        "smaller in most runs",
        f"in {percent(shares[0], 3)} of runs that move away, {percent(shares[1], 3)} of runs that come back",
    )


def _linear(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    return x @ theta


def _sensitivity(
    f: Callable[[np.ndarray, np.ndarray], np.ndarray], theta: np.ndarray, x: np.ndarray, noise: np.ndarray
) -> float:
    base = f(theta, x)
    return float(np.mean([(f(theta + e, x) - base) ** 2 for e in noise]))


@statement(
    "20",
    section="4.2",
    says="Sensitivity: the mean square change of the output under a perturbation of the weights.",
    formula=r"S(\boldsymbol{\theta}) = \mathbb{E}_{\boldsymbol{x},\boldsymbol{\epsilon}}[(f(\boldsymbol{x};\boldsymbol{\theta} + \boldsymbol{\epsilon}) - f(\boldsymbol{x};\boldsymbol{\theta}))^2]",
    verdict=DEFINITION,
    method="against the closed form for a linear model",
    printed=_sensitivity,
    note="The law of ε is left open: S depends on it, and not on how θ came about.",
)
def sensitivity(S: Form, effort: Effort) -> Outcome:
    rng = effort.rng
    x, noise = rng.normal(size=(200, 4)), rng.normal(size=(effort.times(4000), 4)) * 0.1
    measured = S(_linear, rng.normal(size=4), x, noise)
    exact = 0.01 * float((x**2).sum(1).mean())
    return defined(
        abs(measured / exact - 1) < 0.05, f"{number(exact)} for f = θ·x and ε ~ N(0, 0.01)", number(measured)
    )


@statement(
    "21",
    section="4.2",
    says="An EMA is less sensitive to perturbations, by (1 − β)/(1 + β).",
    formula=r"S(\boldsymbol{\theta}_{ema}) \leq \frac{1-\beta}{1+\beta}S(\boldsymbol{\theta})",
    verdict=WRONG,
    method="exact sensitivity of linear models; search over small networks",
    printed=lambda beta: (1 - beta) / (1 + beta),
    corrected=r"S(\boldsymbol{\theta}_{ema}) = S(\boldsymbol{\theta})\ \text{for } f \text{ linear in } \boldsymbol{\theta}\text{; no bound otherwise}",
    right=lambda beta: 1.0,
    states="Var[θ] = σ²",
    note="ε is added from outside: how θ varies does not enter S. What falls is Var[f(x; θ_ema)], by the factor of (10) "
    "corrected.",
)
def sensitivity_of_average(ratio: Form, effort: Effort) -> Outcome:
    rng = effort.rng
    x, noise = rng.normal(size=(50, 3)), 0.1 * rng.normal(size=(200, 3))

    def cases() -> Iterator[tuple[str, float, float]]:
        for _ in range(20):
            beta = float(rng.uniform(0.5, 0.99))
            path = rng.normal(size=(40, 3)) + 2.0
            average = np.array(ema_weights([beta] * 39)) @ path
            yield (
                f"f = θ·x, β = {beta:.2f}",
                _sensitivity(_linear, average, x, noise),
                ratio(beta) * _sensitivity(_linear, path[-1], x, noise),
            )

    found = search(cases())

    def tanh(theta: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.tanh(v @ theta)

    big, small = (_sensitivity(tanh, np.full(3, c), x, noise) for c in (0.0, 3.0))
    return truth(
        found.clean,
        "S(EMA) at most the factor times S(θ), for models linear in θ",
        f"{number(found.worst)} times the right side ({found.where}); tanh(θ·x): S is {number(big / small)} times larger "
        "at the average of ±3 than at either",
    )


def _sharpness(L: Loss, theta: float, rho: float) -> float:
    steps = np.linspace(-rho, rho, 201)
    return max(L(theta + float(e)) - L(theta) for e in steps) / (1 + L(theta))


def _highest(L: Loss, theta: float, rho: float) -> float:
    return max(L(theta + float(e)) for e in np.linspace(-rho, rho, 201))


@statement(
    "22",
    section="4.3",
    says="Sharpness: the largest relative rise of the loss within a ball of radius ρ.",
    formula=r"Sh(\boldsymbol{\theta}) = \max_{\|\boldsymbol{\epsilon}\| \leq \rho}\frac{L(\boldsymbol{\theta} + \boldsymbol{\epsilon}) - L(\boldsymbol{\theta})}{1 + L(\boldsymbol{\theta})}",
    verdict=DEFINITION,
    method="sign, and its behaviour under a change of units",
    printed=_sharpness,
    states="L ≥ 0",
    note="1 + L adds a loss to a pure number, and ρ is in units of the weights: multiply the loss by ten, or rescale two "
    "ReLU layers against each other, and sharpness changes while the network does not.",
)
def sharpness(Sh: Form, effort: Effort) -> Outcome:
    def L(x: float) -> float:
        return x * x

    values = [Sh(L, x, 0.5) for x in (-2.0, 0.0, 1.0)]
    scaled = Sh(lambda x: 10 * x * x, 1.0, 0.5)
    return defined(
        min(values) >= 0 and math.isclose(values[1], 0.25),
        "not negative; ρ² = 0.25 at the minimum of θ²",
        f"{number(values[1])} at 0, {number(values[2])} at 1; ten times the loss: {number(scaled)} at 1",
    )


CONVEX: dict[str, Loss] = {
    "|θ|": abs,
    "√(1 + θ²)": lambda x: math.sqrt(1 + x * x),
    "θ²": lambda x: x * x,
    "log cosh θ": lambda x: float(np.logaddexp(x, -x) - math.log(2)),
    "max(0, θ)²": lambda x: max(0.0, x) ** 2,
}


def _pairs(
    value: Callable[[Loss, float, float], float], effort: Effort
) -> Iterator[tuple[str, float, float]]:
    """The value at an EMA of weights against the EMA of the values, over convex losses and random paths."""
    rng = effort.rng
    for _ in range(effort.times(60)):
        for name, L in CONVEX.items():
            path = rng.normal(size=int(rng.integers(2, 8))) * 10 ** rng.uniform(-1, 1)
            w = np.array(ema_weights([float(rng.uniform(0.3, 0.95))] * (len(path) - 1)))
            rho = float(10 ** rng.uniform(-1, 0))
            yield name, value(L, float(w @ path), rho), float(w @ [value(L, float(x), rho) for x in path])
    yield "|θ| at ±1", value(abs, 0.0, 0.1), (value(abs, 1.0, 0.1) + value(abs, -1.0, 0.1)) / 2


@statement(
    "23",
    section="4.3",
    says="The EMA's sharpness is at most the mean sharpness along the path.",
    formula=r"\mathbb{E}[Sh(\boldsymbol{\theta}_{ema})] \leq \mathbb{E}_t[Sh(\boldsymbol{\theta}_t)]",
    verdict=WRONG,
    method="search for a counter-example over convex losses",
    printed=_sharpness,
    corrected=r"\max_{\|\epsilon\|\leq\rho} L(\boldsymbol{\theta}_{ema}+\epsilon) \leq \mathbb{E}_t\left[\max_{\|\epsilon\|\leq\rho} L(\boldsymbol{\theta}_t+\epsilon)\right]\quad (L \text{ convex, } \mathbb{E}_t \text{ with the EMA's weights})",
    right=_highest,
    note="Already |θ| breaks it: at 0, the average of ±1, sharpness is ρ; at ±1 it is ρ/2. What is convex is the "
    "worst loss in the ball, not its rise.",
)
def sharpness_of_average(value: Form, effort: Effort) -> Outcome:
    found = search(_pairs(value, effort))
    return truth(
        found.clean,
        f"left ≤ right in {found.tried} cases",
        f"left is {number(found.worst)} times right for {found.where}",
    )


def _curvature(L: Loss, theta: float, rho: float) -> float:
    d = 1e-4
    return (L(theta + d) - 2 * L(theta) + L(theta - d)) / d**2


@statement(
    "4.3-proof",
    section="4.3",
    says="Proof idea of (23): a convex function's Hessian eigenvalues at a convex combination are at most the weighted mean of those at its points.",
    verdict=WRONG,
    method="search for a counter-example over convex losses",
    printed=_curvature,
    corrected=r"\text{the loss, not its Hessian: } L(\textstyle\sum_t w_t\theta_t) \leq \sum_t w_t L(\theta_t)",
    right=lambda L, theta, rho: L(theta),
    note="√(1 + θ²) has curvature 1 at 0 and 0.35 at ±1.",
)
def hessian_is_not_convex(value: Form, effort: Effort) -> Outcome:
    smooth = ((name, left, right) for name, left, right in _pairs(value, effort) if "|" not in name)
    found = search(smooth)
    return truth(
        found.clean,
        f"left ≤ right in {found.tried} cases",
        f"left is {number(found.worst)} times right for {found.where}",
    )


@statement(
    "4.2-variance",
    section="4.2",
    says="An EMA lowers the variance of the weights and so makes the model's output steadier.",
    verdict=CONDITIONAL,
    method="exact output variance of a linear model on an AR(1) path",
    printed=variance_factor,
    needs="the output is linear in the weights over their spread; the factor is that of (10) corrected",
)
def steadier_output(factor: Form, effort: Effort) -> Outcome:
    rng, beta, rho = effort.rng, 0.95, 0.9
    T, runs = 400, effort.times(3000)
    theta, average = rng.normal(size=(runs, 2)), np.zeros((runs, 2))
    for _ in range(T):
        theta = rho * theta + math.sqrt(1 - rho**2) * rng.normal(size=(runs, 2))
        average += (1 - beta) * (theta - average)
    x = np.array([0.3, -1.2])
    ratio = float((average @ x).var() / (theta @ x).var())
    error = 1.5 * ratio * math.sqrt(2 / runs)
    return conditional(
        False,
        abs(ratio - factor(beta, rho)) < 4 * error,
        f"{number(factor(beta, rho))} of the variance at β = 0.95, ρ = 0.9",
        f"{number(ratio)} ± {number(error, 1)}",
    )
