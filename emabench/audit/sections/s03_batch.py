"""§3: an EMA and the batch size, for EMAs of gradients and of weights apart."""

from __future__ import annotations

import math

import numpy as np

from emabench.audit.statement import (
    APPROXIMATE,
    CONDITIONAL,
    DEFINITION,
    WRONG,
    Effort,
    Form,
    Outcome,
    approximate,
    conditional,
    defined,
    statement,
    truth,
)
from emabench.audit.tools import Quadratic, number, percent, stationary_covariance, variance_factor


def _momentum_variance(eta_h: float, beta: float) -> float:
    """Stationary Var[θ] of SGD along an EMA of gradients over that of SGD at the same step size (h = 1, σ = 1)."""
    A = np.array([[1 - eta_h * (1 - beta), -eta_h * beta], [1 - beta, beta]])  # θ, m
    b = np.array([-eta_h * (1 - beta), 1 - beta])
    with_momentum = stationary_covariance(A, np.outer(b, b))[0, 0]
    return float(with_momentum / (eta_h**2 / (1 - (1 - eta_h) ** 2)))


@statement(
    "14",
    section="3.1",
    says="An EMA multiplies the effective batch size by (1 + β)/(1 − β).",
    formula=r"B_{eff} = B \cdot \frac{1+\beta}{1-\beta}",
    verdict=CONDITIONAL,
    method="exact noise of one update, and of the weights it leads to (Lyapunov equation)",
    printed=lambda beta: (1 + beta) / (1 - beta),
    states="momentum, an EMA of gradients",
    needs="the EMA is of gradients, not of weights; what counts is the noise of a single update, not of where training "
    "ends; gradients of different steps are independent",
    note="The updates are less noisy one by one but correlated: over many steps their noise adds up to that of plain "
    "SGD. An EMA of the weights leaves the gradients as they are; see 16.",
)
def effective_batch(multiple: Form, effort: Effort) -> Outcome:
    rows = {}
    for beta in (0.5, 0.9, 0.99):
        w = (1 - beta) * beta ** np.arange(60 / (1 - beta))
        rows[beta] = (1 / float((w**2).sum()), 1 / _momentum_variance(1e-3, beta))
    of_one_update = all(math.isclose(multiple(beta), one, rel_tol=1e-6) for beta, (one, _) in rows.items())
    of_the_weights = all(math.isclose(multiple(beta), end, rel_tol=0.05) for beta, (_, end) in rows.items())
    return conditional(
        of_one_update and of_the_weights,
        of_one_update,
        f"noise as of a batch {number(multiple(0.9))} times as large at β = 0.9",
        f"{number(rows[0.9][0])} times for one update; {number(rows[0.9][1])} times for the weights in the stationary "
        "state (ηh = 0.001)",
    )


def _batch_of_half_gain(S: np.ndarray, H: np.ndarray, g: np.ndarray) -> float:
    """The batch size at which the best step gains half of what it gains without noise, by bisection."""

    def gain(B: float) -> float:
        curvature = g @ H @ g + np.trace(S @ H) / B
        return float((g @ g) ** 2 / (2 * curvature))  # max over η of η gᵀg − η²/2 · curvature

    low, high = 1e-12, 1e12
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if gain(middle) < gain(1e300) / 2 else (low, middle)
    return low


@statement(
    "15",
    section="3.2",
    says="The critical batch size is tr(ΣH)/gᵀHg.",
    formula=r"B_c^{(0)} = \frac{\text{tr}(\boldsymbol{\Sigma}\boldsymbol{H})}{\boldsymbol{g}^{\top}\boldsymbol{H}\boldsymbol{g}}",
    verdict=DEFINITION,
    method="the batch size at which the best SGD step gains half, by bisection",
    printed=lambda S, H, g: float(np.trace(S @ H) / (g @ H @ g)),
    states="Σ is the covariance of one sample's gradient",
    note="A number of samples: loss and weight units cancel.",
)
def critical_batch(size: Form, effort: Effort) -> Outcome:
    rng, worst = effort.rng, 0.0
    for _ in range(20):
        A, B, g = rng.normal(size=(4, 4)), rng.normal(size=(4, 4)), rng.normal(size=4)
        S, H = A @ A.T, B @ B.T
        worst = max(worst, abs(size(S, H, g) / _batch_of_half_gain(S, H, g) - 1))
    return defined(
        worst < 1e-6,
        "the batch of half the largest gain",
        f"off by at most {number(worst)} in 20 random cases",
    )


@statement(
    "16",
    section="3.2",
    says="With an EMA the critical batch size falls by (1 − β)/(1 + β).",
    formula=r"B_c^{(ema)} = B_c^{(0)} \cdot \frac{1-\beta}{1+\beta}",
    verdict=CONDITIONAL,
    method="the batch of half the gain (15) for one update; exact stationary loss for a whole training",
    printed=lambda beta: (1 - beta) / (1 + beta),
    corrected=r"B_c^{(ema)} = B_c^{(0)} \quad\text{over a whole training, and for an EMA of weights}",
    right=lambda beta: 1.0,
    states="(14), (15)",
    needs="those of (14): the EMA is of gradients, and a single update counts",
    note="An EMA of weights only watches: gradients, noise and curvature at the weights that are trained are what they "
    "were. An EMA of gradients moves noise from one step to the next and ends at the same stationary loss.",
)
def critical_batch_with_ema(factor: Form, effort: Effort) -> Outcome:
    betas = (0.5, 0.9, 0.99)
    weights = dict.fromkeys(betas, 1.0)  # the training run, and with it (15), is the same one
    gradients = {beta: _momentum_variance(1e-3, beta) for beta in betas}  # loss ∝ variance ∝ 1/B
    holds = all(
        math.isclose(factor(beta), weights[beta], rel_tol=0.02)
        and math.isclose(factor(beta), gradients[beta], rel_tol=0.02)
        for beta in betas
    )
    rng = effort.rng
    A, H, g = rng.normal(size=(3, 3)), np.diag([1.0, 2.0, 5.0]), rng.normal(size=3)
    plain = _batch_of_half_gain(A @ A.T, H, g)
    one_update = {}
    for beta in betas:
        left = float(
            (((1 - beta) * beta ** np.arange(60 / (1 - beta))) ** 2).sum()
        )  # of the noise, in one update
        one_update[beta] = _batch_of_half_gain(left * A @ A.T, H, g) / plain
    return conditional(
        holds,
        all(math.isclose(factor(beta), one_update[beta], rel_tol=1e-6) for beta in betas),
        "weights: 1 at every β; gradients: "
        + ", ".join(f"{number(gradients[b])} at β = {b:g}" for b in betas)
        + " in the end, "
        + ", ".join(number(one_update[b]) for b in betas)
        + " for one update",
        ", ".join(f"{number(factor(b))}" for b in betas),
    )


@statement(
    "3.2-small-batch",
    section="3.2",
    says="An EMA lowers the need for a large batch.",
    verdict=CONDITIONAL,
    method="exact loss of the averaged weights against that of raw weights at a larger batch",
    printed=lambda beta, rho: 1 / variance_factor(beta, rho),
    needs="it is the averaged weights that are evaluated, at a constant learning rate; the updates themselves are as "
    "noisy as before",
)
def smaller_batch(multiple: Form, effort: Effort) -> Outcome:
    q = Quadratic(eta=0.01, beta=0.99)
    larger = multiple(q.beta, q.rho)
    raw = q.h / 2 * q.iterate_variance / larger  # stationary loss at a batch `larger` times as large
    matches = math.isclose(raw, q.ema_excess(), rel_tol=1e-6)
    return conditional(
        False,
        matches and larger > 1,
        f"the EMA's loss is that of a batch {number(larger)} times as large (β = 0.99, ηh = 0.01)",
        f"loss {number(q.ema_excess())} and {number(raw)}; of the raw weights at the small batch {number(raw * larger)}",
    )


@statement(
    "3.3-linear",
    section="3.3",
    says="Without an EMA the learning rate grows in proportion to B while B < B_c.",
    formula=r"\eta \propto B \quad (B < B_c)",
    verdict=APPROXIMATE,
    method="the best step of the expected decrease, η_max/(1 + B_c/B)",
    printed=lambda share: share,
    note="Too large by B/B_c of itself: 10 % at a tenth of B_c, 100 % at B_c.",
)
def linear_scaling(rate: Form, effort: Effort) -> Outcome:
    errors = {s: rate(s) / (1 / (1 + 1 / s)) - 1 for s in (0.01, 0.1, 0.5, 1.0)}
    return approximate(
        max(abs(e) for s, e in errors.items() if s <= 0.1),
        0.11,
        "η = η_max/(1 + B_c/B)",
        ", ".join(f"{percent(e)} too large at B = {s:g} B_c" for s, e in errors.items()),
    )


def _momentum_loss(eta: float, beta: float, noise: float = 900.0, steps: int = 200) -> float:
    """E[θ²/2] after SGD along an EMA of gradients from θ = 1 on h = 1: B_c = `noise` at the start, B = 1, η₀ = 1."""
    A = np.array([[1 - eta * (1 - beta), -eta * beta], [1 - beta, beta]])  # θ, m
    b = np.array([-eta * (1 - beta), 1 - beta])
    moments = np.diag([1.0, 0.0])
    for _ in range(steps):
        moments = A @ moments @ A.T + noise * np.outer(b, b)
    return float(moments[0, 0] / 2)


@statement(
    "17",
    section="3.3",
    says="With an EMA the learning rate is η₀·min(B/B_c^(ema), 1), B_c^(ema) being that of (16).",
    formula=r"\eta_{ema} = \eta_0 \cdot \min\left(B/B_c^{(ema)}, 1\right)",
    verdict=WRONG,
    method="against the same training without an EMA; exact loss of SGD along an EMA of gradients at that rate",
    printed=lambda B, Bc, beta: min(B / (Bc * (1 - beta) / (1 + beta)), 1.0),
    corrected=r"\eta_{ema} = \eta_0 \cdot \min\left(B/B_c^{(0)}, 1\right) \quad\text{(an EMA of weights changes no step)}",
    right=lambda B, Bc, beta: min(B / Bc, 1.0),
    states="(16)",
    note="With (16) it raises the rate up to (1 + β)/(1 − β)-fold, while the text advises a smaller one. For an EMA of "
    "gradients too: the noise of successive updates adds up to that of SGD at the same rate.",
    rank=10,
    harm="Raises the learning rate of small batches up to 199-fold at β = 0.99, because something watches the weights.",
)
def rate_with_ema(rate: Form, effort: Effort) -> Outcome:
    cases = [(B, 256.0, beta) for B in (8.0, 64.0, 256.0, 1024.0) for beta in (0.0, 0.9, 0.99)]
    ratios = {case: rate(*case) / min(case[0] / case[1], 1.0) for case in cases}
    where, worst = max(ratios.items(), key=lambda item: abs(item[1] - 1))
    claimed, plain = (
        _momentum_loss(r(1.0, 900.0, 0.9), 0.9) for r in (rate, lambda B, Bc, beta: min(B / Bc, 1.0))
    )
    return truth(
        abs(worst - 1) < 1e-9 or claimed <= plain,
        f"the rate of the same training without an EMA; along an EMA of gradients a loss of {number(plain)} or less",
        f"{number(worst)} times it at B = {where[0]:g}, B_c = {where[1]:g}, β = {where[2]:g}; a loss of {number(claimed)}",
    )


@statement(
    "3.3-advice",
    section="3.3",
    says="In practice: with an EMA use a smaller batch and a smaller learning rate, by (17).",
    verdict=WRONG,
    method="direction of (17)",
    printed=lambda B, Bc, beta: min(B / (Bc * (1 - beta) / (1 + beta)), 1.0) / min(B / Bc, 1.0),
    corrected=r"\text{keep } \eta \text{ and } B \text{; the average of a constant, larger rate gains most}",
    right=lambda B, Bc, beta: 1.0,
    states="(17)",
)
def advice_follows(change: Form, effort: Effort) -> Outcome:
    rising = [
        (B, beta) for B in (8.0, 64.0, 200.0) for beta in (0.9, 0.99) if change(B, 256.0, beta) > 1 + 1e-12
    ]
    return truth(
        not rising,
        "(17) never asks for a larger rate than without an EMA",
        f"it asks for a larger one in {len(rising)} of 6 cases"
        + (f", {number(change(8.0, 256.0, 0.9))} times at B = 8, β = 0.9" if rising else ""),
    )
