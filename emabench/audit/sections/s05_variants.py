"""§5: SWA, Lookahead, and what the article calls LAWA."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from emabench.audit.statement import (
    APPROXIMATE,
    CONDITIONAL,
    DEFINITION,
    EMPIRICAL,
    HOLDS,
    WRONG,
    Effort,
    Form,
    Outcome,
    approximate,
    conditional,
    defined,
    reported,
    statement,
    truth,
)
from emabench.audit.tools import ema, number, percent, search


@statement(
    "24",
    section="5.1",
    says="SWA is the uniform mean of the last n_SWA steps.",
    formula=r"\boldsymbol{\theta}_{SWA} = \frac{1}{n_{SWA}}\sum_{t=T-n_{SWA}+1}^T \boldsymbol{\theta}_t",
    verdict=DEFINITION,
    method="against the running mean that implementations keep",
    printed=lambda theta, n: sum(theta[t - 1] for t in range(len(theta) - n + 1, len(theta) + 1)) / n,
)
def swa(mean: Form, effort: Effort) -> Outcome:
    theta, n = effort.rng.normal(size=100), 25
    running = 0.0
    for k, value in enumerate(theta[-n:]):
        running = (running * k + value) / (k + 1)  # Izmailov et al. 2018, algorithm 1
    return defined(
        abs(mean(theta, n) - running) < 1e-12,
        "the running mean over the last 25",
        f"difference {number(abs(mean(theta, n) - running))}",
    )


@statement(
    "5.1-limit",
    section="5.1",
    says="Compared with an EMA, SWA is β → 1 over the last few epochs.",
    verdict=CONDITIONAL,
    method="weights of an EMA with β near 1, begun at T − n",
    printed=1 - 1e-9,
    needs="the EMA starts n steps before the end and is bias-corrected",
    note="The published runs average the last quarter of training or more, at a constant high learning rate.",
)
def swa_as_limit(beta: Form, effort: Effort) -> Outcome:
    theta, n = effort.rng.normal(size=100), 25
    mean = float(theta[-n:].mean())
    begun_late = ema(theta[-n:], beta, 0.0)[-1] / -math.expm1(n * math.log(beta))
    whole = ema(theta, beta, float(theta[0]))[-1]
    return conditional(
        abs(whole - mean) < 1e-4,
        abs(begun_late - mean) < 1e-4,
        f"the mean of the last 25: {number(mean, 4)}",
        f"{number(begun_late, 4)} begun late and corrected; {number(whole, 4)} over the whole run (its start)",
    )


@statement(
    "5.1-cycles",
    section="5.1",
    says="With a cyclic learning rate, SWA collects once at the end of each cycle and averages those.",
    verdict=CONDITIONAL,
    method="(24) against the mean of the cycle ends",
    printed=lambda theta, n, cycle: float(np.mean(theta[::-1][: n * cycle : cycle])),
    needs="t in (24) counts cycles, not steps",
)
def swa_by_cycle(mean: Form, effort: Effort) -> Outcome:
    cycle, cycles = 10, 4
    theta = effort.rng.normal(size=cycle * cycles) + 5 * (np.arange(cycle * cycles) % cycle != cycle - 1)
    ends = float(theta[cycle - 1 :: cycle].mean())
    every_step = float(theta.mean())
    return conditional(
        math.isclose(every_step, ends, abs_tol=1e-9),
        math.isclose(mean(theta, cycles, cycle), ends, abs_tol=1e-9),
        f"the mean of the cycle ends: {number(ends)}",
        f"{number(mean(theta, cycles, cycle))} counting cycles, {number(every_step)} by (24) over steps",
    )


@statement(
    "5.1-optima",
    section="5.1",
    says="SWA with a cyclic rate explores several optima and ends best.",
    verdict=EMPIRICAL,
    method="the order of the rows that the table reports",
    printed=(76.1, 76.4, 76.5, 76.6),
    table="imagenet_resnet50",
)
def swa_is_best(rows: Form, effort: Effort) -> Outcome:
    return reported(rows[-1] == max(rows), "SWA's top-1 the highest of §8.1", f"{rows[-1]} of {rows}")


def _lookahead(reset: bool) -> Form:
    """k fast steps of gradient descent on hθ²/2, then the slow update; fast weights reset to the slow ones, or not."""

    def cycles(start: float, rho: float, k: int, alpha: float, n: int) -> float:
        fast = slow = start
        for _ in range(n):
            fast *= rho**k
            slow += alpha * (fast - slow)
            if reset:
                fast = slow
        return slow

    return cycles


@statement(
    "25",
    section="5.2",
    says="Lookahead: k fast steps, then the slow weights move a share α towards the fast ones.",
    formula=r"\begin{aligned} \boldsymbol{\theta}_{fast,t+1} &= \boldsymbol{\theta}_{fast,t} - \eta \nabla L(\boldsymbol{\theta}_{fast,t})\\ \boldsymbol{\theta}_{slow,t+k} &= \boldsymbol{\theta}_{slow,t} + \alpha(\boldsymbol{\theta}_{fast,t+k} - \boldsymbol{\theta}_{slow,t}) \end{aligned}",
    verdict=WRONG,
    method="against the closed form of Lookahead on a quadratic (Zhang et al. 2019)",
    printed=_lookahead(reset=False),
    corrected=r"\text{…, then } \boldsymbol{\theta}_{fast,t+k} \leftarrow \boldsymbol{\theta}_{slow,t+k}",
    right=_lookahead(reset=True),
    note="Without the reset the slow weights only watch: it is an EMA of every k-th iterate, and training is plain SGD.",
    rank=7,
    harm="Leaves out the line that makes it Lookahead: what runs is plain SGD with an average beside it.",
)
def lookahead(cycles: Form, effort: Effort) -> Outcome:
    rho, k, alpha, n = 0.8, 5, 0.5, 8
    exact = (1 - alpha + alpha * rho**k) ** n  # each cycle multiplies the slow weights by this
    got = cycles(1.0, rho, k, alpha, n)
    return truth(
        math.isclose(got, exact, rel_tol=1e-9),
        f"{number(exact, 5)} after 8 cycles of 5 (α = 0.5, ηh = 0.2)",
        number(got, 5),
    )


@statement(
    "5.2-alpha",
    section="5.2",
    says="α plays the part of 1 − β, applied every k steps.",
    verdict=HOLDS,
    method="(25) as printed against an EMA of every k-th iterate",
    printed=lambda alpha: 1 - alpha,
    states="(25) as printed, fast weights not reset",
)
def alpha_is_decay(decay: Form, effort: Effort) -> Outcome:
    rho, k, alpha, n = 0.9, 5, 0.3, 12
    slow = _lookahead(reset=False)(1.0, rho, k, alpha, n)
    average = ema([rho ** (k * i) for i in range(1, n + 1)], decay(alpha), 1.0)[-1]
    return truth(
        math.isclose(slow, average, rel_tol=1e-9),
        f"{number(average, 5)}",
        f"{number(slow, 5)} after 12 cycles",
    )


@statement(
    "5.2-variance",
    section="5.2",
    says="Lookahead lowers the variance.",
    verdict=HOLDS,
    method="exact stationary variance on quadratics (Lyapunov by hand), searched over k, α and ηh",
    printed=lambda rho, k, alpha: alpha**2 * (1 - rho ** (2 * k)) / (1 - (1 - alpha + alpha * rho**k) ** 2),
    states="a noisy quadratic; fast weights reset (Zhang et al. 2019, proposition 2)",
)
def lookahead_variance(ratio: Form, effort: Effort) -> Outcome:
    rng = effort.rng

    def cases() -> Iterator[tuple[str, float, float]]:
        for _ in range(effort.times(2000)):
            rho, k, alpha = (
                float(rng.uniform(0.0, 1.0)),
                int(rng.integers(1, 30)),
                float(rng.uniform(0.01, 0.99)),
            )
            yield f"ρ = {rho:.3f}, k = {k}, α = {alpha:.2f}", ratio(rho, k, alpha), 1.0

    found = search(cases())
    rho, k, alpha, runs = 0.9, 5, 0.5, effort.times(4000)
    slow = np.zeros(runs)
    for _ in range(60):
        fast = slow.copy()
        for _ in range(k):
            fast = rho * fast + rng.normal(size=runs)
        slow += alpha * (fast - slow)
    simulated = float(slow.var() * (1 - rho**2))
    error = simulated * math.sqrt(2 / runs)
    return truth(
        found.clean and abs(simulated - ratio(rho, k, alpha)) < 5 * error,
        "below SGD's at every k, α, ηh",
        f"{found.tried} cases, at most {found.worst:.3f} of SGD's; at ρ = 0.9, k = 5, α = 0.5 {number(ratio(rho, k, alpha))} "
        f"(simulated {number(simulated)} ± {number(error, 1)})",
    )


def _equation_26(gradients: list[float], steps: int) -> list[float]:
    """Weights of the last `steps` checkpoints in the first layer, newest last, by eq. (26) with β₀ = 0.999."""
    beta = 0.999 * math.exp(-gradients[0] / sum(gradients))
    return [(1 - beta) * beta ** (steps - 1 - s) for s in range(steps)]


@statement(
    "26",
    section="5.3",
    says="LAWA, layer-wise adaptive weight averaging, gives layer l the decay β₀·exp(−its share of the gradient norm).",
    formula=r"\beta_l = \beta_0 \cdot \exp\left(-\frac{\|\nabla_{\boldsymbol{\theta}_l}L\|}{\sum_l \|\nabla_{\boldsymbol{\theta}_l}L\|}\right)",
    verdict=WRONG,
    method="weights of checkpoints against LAWA's (Kaddour 2022: the mean of the latest k)",
    printed=_equation_26,
    corrected=r"\text{LAWA, LAtest Weight Averaging: } \bar{\boldsymbol{\theta}}_t = \frac{1}{k}\sum_{i=0}^{k-1}\boldsymbol{\theta}_{t-i}\ \text{over checkpoints, the same for every layer}",
    right=lambda gradients, steps: [1 / steps] * steps,
    note="No paper of that name does (26). It also shortens every window: with L equal layers β_l ≤ e^(−1/L), about L "
    "steps, whatever β₀ is.",
    rank=8,
    harm="Is not LAWA, and collapses the window: ten equal layers at β₀ = 0.999 average 10 steps in place of 1000.",
)
def lawa(weights: Form, effort: Effort) -> Outcome:
    equal = weights([1.0] * 10, 10)
    beta = 0.999 * math.exp(-0.1)
    gap = max(abs(w - 0.1) for w in equal)
    return truth(
        gap < 1e-9,
        "0.1 each on the latest 10 checkpoints",
        f"{number(equal[0])} on the oldest of the ten, {number(equal[-1])} on the newest (β = {beta:.3f}, a window of "
        f"{number(1 / (1 - beta))} steps)",
    )


@statement(
    "5.3-direction",
    section="5.3",
    says="By (26), layers with large gradients get a smaller β.",
    verdict=HOLDS,
    method="monotony of (26)",
    printed=lambda share: 0.999 * math.exp(-share),
)
def large_gradient_small_decay(beta: Form, effort: Effort) -> Outcome:
    values = [beta(share) for share in np.linspace(0, 1, 50)]
    return truth(
        bool(np.all(np.diff(values) < 0)),
        "β_l falls with the share",
        f"from {number(values[0])} to {number(values[-1])}",
    )


@statement(
    "5.3-balance",
    section="5.3",
    says="(26) balances the speeds at which layers' averages follow.",
    verdict=APPROXIMATE,
    method="gradient share × window over layers",
    printed=lambda share: 0.999 * math.exp(-share),
    states="speed: gradient norm × window",
    note="Because every window shrinks to about 1/share steps, whatever β₀ is: the price is the collapse shown at (26).",
)
def balanced(beta: Form, effort: Effort) -> Outcome:
    moved = {
        share: share / (1 - beta(share)) for share in (0.02, 0.05, 0.18, 1.0)
    }  # how far a layer goes in a window
    spread = max(v for s, v in moved.items() if s < 1) / min(v for s, v in moved.items() if s < 1) - 1
    return approximate(
        spread,
        0.2,
        "share × window the same in every layer",
        f"apart by {percent(spread)} between shares of 0.02 and 0.18, by {percent(moved[1.0] / moved[0.02] - 1)} up to a share of 1",
    )
