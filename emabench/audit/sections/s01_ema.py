"""§1: what an EMA is, its bias correction and its window."""

from __future__ import annotations

import math

import numpy as np

from emabench.audit.statement import (
    APPROXIMATE,
    CONDITIONAL,
    DEFINITION,
    HOLDS,
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
from emabench.audit.tools import ema, ema_weights, number, percent


@statement(
    "1",
    section="1.1",
    says="The EMA of the weights: a share β of the old average and 1 − β of the new weights.",
    formula=r"\boldsymbol{\theta}_{ema,t} = \beta\boldsymbol{\theta}_{ema,t-1} + (1-\beta)\boldsymbol{\theta}_t",
    verdict=DEFINITION,
    method="limits, convexity, a fixed point",
    printed=lambda beta, old, new: beta * old + (1 - beta) * new,
    states="0 ≤ β < 1",
)
def ema_is_convex(step: Form, effort: Effort) -> Outcome:
    rng = effort.rng
    cases = [(rng.uniform(), *rng.normal(size=2)) for _ in range(200)]
    between = all(min(o, n) - 1e-12 <= step(b, o, n) <= max(o, n) + 1e-12 for b, o, n in cases)
    ends = step(0.0, 3.0, 5.0) == 5.0 and step(1.0, 3.0, 5.0) == 3.0
    return defined(
        between and ends and math.isclose(step(0.7, 2.0, 2.0), 2.0),
        "between old and new; the new weights at β = 0; constant on a constant",
        f"in between in 200 random cases: {between}; limits right: {ends}",
    )


def _run_of(beta: float, T: int, effort: Effort) -> np.ndarray:
    return effort.rng.normal(size=T + 1) + 10.0  # θ_0 … θ_T, away from zero


@statement(
    "2",
    section="1.1",
    says="Unrolled, the EMA is (1 − β)Σβ^(t−s)θ_s over s = 0 … t.",
    formula=r"\boldsymbol{\theta}_{ema,t} = (1-\beta)\sum_{s=0}^{t}\beta^{t-s}\boldsymbol{\theta}_s",
    verdict=CONDITIONAL,
    method="against the recursion (1) from three starts",
    printed=lambda theta, beta, start: (
        (1 - beta) * sum(beta ** (len(theta) - 1 - s) * x for s, x in enumerate(theta))
    ),
    corrected=r"\boldsymbol{\theta}_{ema,t} = \beta^{t}\,\boldsymbol{\theta}_{ema,0} + (1-\beta)\sum_{s=1}^{t}\beta^{t-s}\boldsymbol{\theta}_s",
    right=lambda theta, beta, start: (
        beta ** (len(theta) - 1) * start
        + (1 - beta) * sum(beta ** (len(theta) - 1 - s) * x for s, x in enumerate(theta) if s)
        if start is not None
        else (1 - beta) * sum(beta ** (len(theta) - 1 - s) * x for s, x in enumerate(theta))
    ),
    states="(1)",
    needs="the average is zero one step before the first weights, θ_ema,−1 = 0 (not θ_ema,0 = 0, and not a copy of θ_0)",
)
def unrolled(sum_: Form, effort: Effort) -> Outcome:
    beta, theta = 0.9, _run_of(0.9, 30, effort)
    starts = {"θ_ema,0 = 0": 0.0, "θ_ema,0 = θ_0": float(theta[0])}
    gaps = {}
    for name, start in starts.items():
        gaps[name] = abs(ema(theta[1:], beta, start)[-1] - sum_(theta, beta, start))
    before = abs(ema(theta, beta, 0.0)[-1] - sum_(theta, beta, None))
    return conditional(
        max(*gaps.values(), before) < 1e-9,
        before < 1e-9,
        "equal to (1) after 30 steps",
        f"difference {number(before)} from θ_ema,−1 = 0; "
        + "; ".join(f"{number(gap)} from {name}" for name, gap in gaps.items()),
    )


@statement(
    "1.1-recent",
    section="1.1",
    says="An EMA is a weighted mean of past weights in which later ones weigh more.",
    verdict=HOLDS,
    method="weights of each step by the recursion",
    printed=lambda beta, T: ema_weights([beta] * T)[1:],
    states="0 ≤ β < 1",
    note="With a start from a copy, θ_0 is the exception: it keeps β^t, 1/(1 − β) times what step 1 weighs.",
)
def later_weighs_more(weights: Form, effort: Effort) -> Outcome:
    rising = all(np.all(np.diff(weights(beta, 50)) > 0) for beta in (0.3, 0.9, 0.999))
    return truth(rising, "weights rise with the step", f"rising at β = 0.3, 0.9, 0.999: {rising}")


@statement(
    "1.2-problem",
    section="1.2",
    says="An EMA that starts at zero, or anywhere else, is pulled towards its start.",
    verdict=HOLDS,
    method="weight left on the start by the recursion",
    printed=lambda beta, t: beta**t,
    states="θ_ema,0 = 0 or arbitrary",
)
def pulled_to_start(left: Form, effort: Effort) -> Outcome:
    exact = {(b, t): ema_weights([b] * t)[0] for b in (0.9, 0.999) for t in (1, 10, 100)}
    gap = max(abs(left(b, t) - w) for (b, t), w in exact.items())
    return truth(
        gap < 1e-12,
        "β^t of the average is still the start",
        f"β = 0.999, t = 100: {percent(exact[0.999, 100], 3)}",
    )


def _bias(divisor: Form, beta: float, t: int, zero_at: int) -> float:
    """Mean of the corrected average over θ*, for weights of constant mean, from a zero start at step `zero_at`."""
    return (1 - beta ** (t - zero_at)) / divisor(beta, t)


@statement(
    "3",
    section="1.2",
    says="Bias correction divides by 1 − β^(t+1).",
    formula=r"\hat{\boldsymbol{\theta}}_{ema,t} = \frac{\boldsymbol{\theta}_{ema,t}}{1 - \beta^{t+1}}",
    verdict=WRONG,
    method="exact mean for weights of constant mean",
    printed=lambda beta, t: 1 - beta ** (t + 1),
    corrected=r"\hat{\boldsymbol{\theta}}_{ema,t} = \frac{\boldsymbol{\theta}_{ema,t}}{1-\prod_{i=1}^{t}\beta_i} = \frac{\boldsymbol{\theta}_{ema,t}}{1-\beta^{t}} \quad\text{from } \boldsymbol{\theta}_{ema,0}=0 \text{ only}",
    right=lambda beta, t: 1 - beta**t,
    states="θ_ema,0 = 0 (or arbitrary)",
    note="Right only if the zero lies one step earlier (θ_ema,−1 = 0). From a copy of θ_0, as the listing of §9.2 starts, "
    "nothing must be divided at all.",
    rank=4,
    harm="Halves the first averages (β = 0.999), and applied to the class of §9.2, which starts from a copy, multiplies "
    "the weights by up to 1/(1 − β).",
)
def divisor_unbiased(divisor: Form, effort: Effort) -> Outcome:
    off = {(b, t): _bias(divisor, b, t, zero_at=0) for b in (0.9, 0.999) for t in (1, 10, 1000)}
    return truth(
        all(abs(value - 1) < 1e-9 for value in off.values()),
        "E[θ̂]/θ* = 1 from θ_ema,0 = 0",
        f"{number(off[0.9, 1])} at β = 0.9, t = 1; {number(off[0.999, 1])} at β = 0.999, t = 1; "
        f"{number(off[0.999, 10])} at t = 10",
    )


@statement(
    "4",
    section="1.2",
    says="From θ_ema,0 = 0 the average is (1 − β)Σβ^(t−s)θ_s over s = 0 … t.",
    formula=r"\boldsymbol{\theta}_{ema,t} = (1-\beta)\sum_{s=0}^{t}\beta^{t-s}\boldsymbol{\theta}_s",
    verdict=WRONG,
    method="against the recursion (1), exact rationals",
    printed=0,
    corrected=r"\boldsymbol{\theta}_{ema,t} = (1-\beta)\sum_{s=1}^{t}\beta^{t-s}\boldsymbol{\theta}_s",
    right=1,
    states="θ_ema,0 = 0",
    note="The first step of (1) after θ_ema,0 brings in θ_1; θ_0 never enters.",
)
def unrolled_from_zero(first: Form, effort: Effort) -> Outcome:
    from fractions import Fraction

    beta, theta = Fraction(9, 10), [Fraction(3), Fraction(5), Fraction(-2), Fraction(7)]
    exact = ema(theta[1:], beta, Fraction(0))[-1]  # type: ignore[arg-type]
    t = len(theta) - 1
    printed = (1 - beta) * sum(beta ** (t - s) * theta[s] for s in range(first, t + 1))
    return truth(printed == exact, f"{exact} for θ = 3, 5, −2, 7 and β = 9/10", str(printed))


@statement(
    "5",
    section="1.2",
    says="If every E[θ_s] = θ*, then E[θ_ema,t] = (1 − β^(t+1))θ*.",
    formula=r"\mathbb{E}[\boldsymbol{\theta}_{ema,t}] = (1-\beta)\boldsymbol{\theta}^*\sum_{s=0}^t \beta^{t-s} = (1-\beta^{t+1})\boldsymbol{\theta}^*",
    verdict=WRONG,
    method="sympy: the recursion for the mean",
    printed=lambda beta, t: 1 - beta ** (t + 1),
    corrected=r"\mathbb{E}[\boldsymbol{\theta}_{ema,t}] = (1-\beta)\boldsymbol{\theta}^*\sum_{s=1}^t \beta^{t-s} = (1-\beta^{t})\boldsymbol{\theta}^*",
    right=lambda beta, t: 1 - beta**t,
    states="θ_ema,0 = 0; E[θ_s] = θ* for every s",
    note="The sum itself is right: (1 − β)Σ β^(t−s) = 1 − β^(t+1). It is the sum for a start one step earlier.",
)
def mean_from_zero(share: Form, effort: Effort) -> Outcome:
    import sympy

    beta = sympy.Symbol("beta", positive=True)
    mean = sympy.Integer(0)
    gaps = []
    for t in range(1, 6):
        mean = sympy.expand(beta * mean + (1 - beta))  # in units of θ*
        gaps.append(sympy.expand(share(beta, t) - mean))
    return truth(
        all(gap == 0 for gap in gaps),
        "the mean of (1) from θ_ema,0 = 0, for t = 1 … 5",
        f"difference at t = 1: {gaps[0]}",
    )


@statement(
    "1.2-unbiased",
    section="1.2",
    says="So θ̂ of (3) is unbiased.",
    verdict=WRONG,
    method="simulation of (1) and (3) with a standard error",
    printed=lambda beta, t: 1 - beta ** (t + 1),
    corrected=r"\boldsymbol{\theta}_{ema,t}/(1-\beta^t) \text{ is unbiased}",
    right=lambda beta, t: 1 - beta**t,
    states="θ_ema,0 = 0; E[θ_s] = θ*",
)
def unbiased_by_simulation(divisor: Form, effort: Effort) -> Outcome:
    beta, t, runs = 0.9, 5, effort.times(4000)
    theta = 1 + 0.2 * effort.rng.normal(size=(t, runs))
    corrected = ema(theta, beta, 0.0)[-1] / divisor(beta, t)
    mean, error = float(corrected.mean()), float(corrected.std() / math.sqrt(runs))
    return truth(
        abs(mean - 1) < 5 * error,
        "1, within 5 standard errors",
        f"{mean:.4f} ± {error:.4f} at β = 0.9, t = 5",
    )


@statement(
    "6",
    section="1.3",
    says="The effective number of samples is the sum of the weights, which is 1.",
    formula=r"N_{eff} = \sum_{s=0}^{\infty}(1-\beta)\beta^s = 1",
    verdict=WRONG,
    method="variance of the mean of independent samples",
    printed=lambda beta: 1.0,
    corrected=r"N_{eff} = \frac{\left(\sum_s w_s\right)^2}{\sum_s w_s^2} = \frac{1+\beta}{1-\beta},\qquad w_s=(1-\beta)\beta^s",
    right=lambda beta: (1 + beta) / (1 - beta),
    states="weights (1 − β)β^s",
    note="The sum is 1, and has to be; it counts nothing.",
)
def effective_samples(count: Form, effort: Effort) -> Outcome:
    rows = {}
    for beta in (0.0, 0.9, 0.999):
        weights = (1 - beta) * beta ** np.arange(40 / (1 - beta))
        rows[beta] = float(weights.sum() ** 2 / (weights**2).sum())
    holds = all(math.isclose(count(beta), n, rel_tol=1e-6) for beta, n in rows.items())
    return truth(
        holds,
        ", ".join(f"{number(n, 4)} at β = {beta:g}" for beta, n in rows.items()) + " (1/Σw², by brute force)",
        ", ".join(f"{number(count(beta), 4)} at β = {beta:g}" for beta in rows),
    )


@statement(
    "7",
    section="1.3",
    says="Half of the weight lies within log 2/log(1/β) steps.",
    formula=r"t_{1/2} = \frac{\log 2}{\log(1/\beta)} \approx \frac{0.69}{1-\beta}",
    verdict=HOLDS,
    method="brute force on the weights",
    printed=lambda beta: math.log(2) / math.log(1 / beta),
    states="0 < β < 1",
    note="The ≈ in it is a statement of its own: 7-approx.",
)
def half_life(steps: Form, effort: Effort) -> Outcome:
    kept = {beta: beta ** steps(beta) for beta in (0.5, 0.9, 0.99, 0.9999)}
    gap = max(abs(value - 0.5) for value in kept.values())
    return truth(
        gap < 1e-9,
        "the weight β^t falls to 0.5",
        f"largest distance from 0.5: {number(gap)}; {number(steps(0.99), 4)} steps at β = 0.99",
    )


@statement(
    "7-approx",
    section="1.3",
    says="The half-life is about 0.69/(1 − β).",
    formula=r"t_{1/2} \approx \frac{0.69}{1-\beta}",
    verdict=APPROXIMATE,
    method="against the exact half-life",
    printed=lambda beta: 0.69 / (1 - beta),
    note="Too long by (1 − β)/2 of itself: 5 % at β = 0.9, 0.05 % at 0.999 (less 0.45 % for 0.69 in place of ln 2).",
)
def half_life_approx(steps: Form, effort: Effort) -> Outcome:
    errors = {b: steps(b) / (math.log(2) / -math.log(b)) - 1 for b in (0.5, 0.9, 0.99, 0.999)}
    return approximate(
        max(abs(e) for b, e in errors.items() if b >= 0.9),
        0.06,
        "ln 2/ln(1/β)",
        "off by " + ", ".join(f"{percent(e)} at β = {b:g}" for b, e in errors.items()),
    )


@statement(
    "1.3-example",
    section="1.3",
    says="β = 0.9 has a half-life of about 7 steps.",
    formula=r"\beta=0.9 \Rightarrow t_{1/2}\approx 7",
    verdict=APPROXIMATE,
    method="the exact half-life",
    printed=7.0,
)
def seven_steps(steps: Form, effort: Effort) -> Outcome:
    exact = math.log(2) / math.log(1 / 0.9)
    return approximate(
        abs(steps / exact - 1),
        0.1,
        f"{number(exact, 4)} steps",
        f"{steps:g}, {percent(steps / exact - 1)} more",
    )


@statement(
    "1.3-window",
    section="1.3",
    says="An EMA averages over the last O(1/(1 − β)) steps.",
    verdict=HOLDS,
    method="mean age, and share of the weight inside the window",
    printed=lambda beta: 1 / (1 - beta),
    note="1/(1 − β) is the mean age plus one exactly; 63 % of the weight lies within it (65 % at β = 0.9).",
)
def window(steps: Form, effort: Effort) -> Outcome:
    rows = []
    for beta in (0.9, 0.99, 0.999):
        weights = (1 - beta) * beta ** np.arange(60 / (1 - beta))
        rows.append(
            (
                float((weights * (np.arange(len(weights)) + 1)).sum()) / steps(beta),
                float(weights[: round(steps(beta))].sum()),
            )
        )
    return truth(
        all(abs(ratio - 1) < 1e-6 and 0.6 < share < 0.7 for ratio, share in rows),
        "mean age + 1 over the window = 1, at every β",
        ", ".join(f"{ratio:.6f} ({percent(share)} inside)" for ratio, share in rows)
        + " at β = 0.9, 0.99, 0.999",
    )
