"""§11: the summary."""

from __future__ import annotations

import math

import numpy as np

from emabench.audit.statement import (
    CONDITIONAL,
    EMPIRICAL,
    HOLDS,
    WRONG,
    Effort,
    Form,
    Outcome,
    conditional,
    reported,
    statement,
    truth,
)
from emabench.audit.tools import Quadratic, ema, number, percent, variance_factor


@statement(
    "11-cost",
    section="11",
    says="An EMA costs nothing extra: one shadow copy is all.",
    verdict=WRONG,
    method="bytes held, and bytes moved by an update",
    printed=lambda parameters: {"bytes": 0, "moved": 0},
    corrected=r"4 \text{ bytes a parameter held (float32); } 12 \text{ moved at every update (two reads, one write)}",
    right=lambda parameters: {"bytes": 4 * parameters, "moved": 12 * parameters},
    note="Small beside training, not nothing: 4 bytes a parameter are a quarter of what Adam in float32 holds.",
)
def costs_nothing(cost: Form, effort: Effort) -> Outcome:
    theta = np.zeros(1000, np.float32)
    shadow = theta.copy()
    held = shadow.nbytes
    moved = theta.nbytes + 2 * shadow.nbytes
    claimed = cost(theta.size)
    return truth(
        claimed == {"bytes": held, "moved": moved},
        f"{held} bytes held and {moved} moved for 1000 parameters",
        f"{claimed['bytes']} and {claimed['moved']}",
    )


@statement(
    "11-variance",
    section="11",
    says="An EMA lowers the fluctuation of the weights.",
    verdict=HOLDS,
    method="the exact variance factor over ρ and β",
    printed=variance_factor,
    states="stationary iterates with 0 ≤ ρ < 1",
)
def variance_falls(factor: Form, effort: Effort) -> Outcome:
    grid = [factor(b, r) for b in np.linspace(0.01, 0.9999, 60) for r in np.linspace(0, 0.9999, 60)]
    return truth(max(grid) < 1, "below 1 for every β > 0", f"at most {max(grid):.6f} in {len(grid)} cases")


@statement(
    "11-error",
    section="11",
    says="The stationary error falls by (1 − β)/(1 + β).",
    verdict=WRONG,
    method="exact stationary loss on a quadratic; sampled as a second way",
    printed=lambda beta, rho: (1 - beta) / (1 + beta),
    corrected=r"\frac{1-\beta}{1+\beta}\cdot\frac{1+\beta\rho}{1-\beta\rho}",
    right=variance_factor,
    table="variance_law",
)
def error_falls(factor: Form, effort: Effort) -> Outcome:
    q, runs = Quadratic(eta=0.05, beta=0.95), effort.times(4000)
    rng, theta, average = effort.rng, np.zeros(runs), np.zeros(runs)
    for _ in range(400):
        theta = q.rho * theta - q.eta * rng.normal(size=runs)
        average += (1 - q.beta) * (theta - average)
    ratio = float((average**2).mean() / (theta**2).mean())
    error = 2 * ratio * math.sqrt(1 / runs)
    claimed = factor(q.beta, q.rho)
    return truth(
        abs(claimed - ratio) < 5 * error,
        f"{percent(ratio, 3)} ± {percent(error, 1)} left (β = 0.95, ηh = 0.05)",
        percent(claimed, 3),
    )


@statement(
    "11-flat",
    section="11",
    says="An EMA converges to flatter minima, which improves generalisation; sharpness falls.",
    verdict=EMPIRICAL,
    method="distance between the EMA and the weights it watches, on a quadratic",
    printed="the same minimum",
    table="imagenet_resnet50",
    note="A passive average chooses no minimum: it is the mean of weights near the one that training chose.",
)
def flatter(where: Form, effort: Effort) -> Outcome:
    q = Quadratic(eta=0.05, sigma2=0.0, beta=0.99, start=3.0)
    far = abs(q.ema_mean(5000))
    return reported(
        far < 1e-9 and bool(where),
        "the EMA ends where training ends",
        f"{number(far)} from the minimum that SGD reaches, without noise",
    )


@statement(
    "11-general",
    section="11",
    says="It works with any optimiser and task.",
    verdict=CONDITIONAL,
    method="weights whose mean is no solution",
    printed=lambda a, b: (a + b) / 2,
    needs="the averaged weights lie in one basin, and the model's buffers belong to them",
    note="Two networks that differ by a permutation of hidden units are equally good; their mean is not.",
)
def any_task(mean: Form, effort: Effort) -> Outcome:
    rng = effort.rng
    x = rng.normal(size=(400, 3))
    W, v = rng.normal(size=(3, 4)), rng.normal(size=4)

    def f(W: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.tanh(x @ W) @ v

    order = [1, 2, 3, 0]
    near = f(mean(W, W + 0.01 * rng.normal(size=W.shape)), v)
    permuted = f(mean(W, W[:, order]), mean(v, v[order]))
    scale = float(np.linalg.norm(f(W, v)))
    gaps = [float(np.linalg.norm(y - f(W, v))) / scale for y in (near, permuted)]
    return conditional(
        max(gaps) < 0.05,
        gaps[0] < 0.05,
        "the mean of two good networks is good",
        f"outputs off by {percent(gaps[0])} for neighbours, by {percent(gaps[1])} for a permuted copy",
    )


@statement(
    "11-any-optimizer",
    section="11",
    says="An EMA changes nothing in the optimiser that it watches.",
    verdict=HOLDS,
    method="the same run with and without one, bit for bit",
    printed=True,
    states="the EMA is passive",
)
def passive(watched: Form, effort: Effort) -> Outcome:
    def training(with_ema: bool) -> list[float]:
        rng, theta, average, path = effort.rng, 1.0, 1.0, []
        for _ in range(200):
            theta -= 0.1 * (theta + float(rng.normal()))
            if with_ema:
                average = ema([theta], 0.99, average)[-1]
            path.append(theta)
        return path

    same = training(bool(watched)) == training(False)
    return truth(same, "identical weights at all of 200 steps", f"identical: {same}")
