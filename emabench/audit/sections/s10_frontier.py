"""§10: adaptive β, several scales, and a unified form."""

from __future__ import annotations

import math

import numpy as np

from emabench.audit.statement import (
    DEFINITION,
    NOT_CHECKABLE,
    WRONG,
    Curves,
    Effort,
    Form,
    Outcome,
    defined,
    statement,
    truth,
    undefined,
)
from emabench.audit.tools import ema, number


@statement(
    "37",
    section="10.1",
    says="β adapts to the gradient: small where the gradient is large, large where it is small.",
    formula=r"\beta_t = 1 - \frac{c}{\sqrt{1 + \|\nabla L(\boldsymbol{\theta}_t)\|^2}}",
    verdict=WRONG,
    method="monotony and range in ‖∇L‖",
    printed=lambda g, c: 1 - c / math.sqrt(1 + g * g),
    corrected=r"\beta_t = \beta_{max} - c\left(1 - \frac{1}{\sqrt{1+\|\nabla L(\boldsymbol{\theta}_t)\|^2}}\right),\quad 0 < c \leq \beta_{max} < 1",
    right=lambda g, c: 0.9999 - c * (1 - 1 / math.sqrt(1 + g * g)),
    states="large gradient, small β; small gradient, large β (§10.1)",
    note="The sign is reversed: as the gradient vanishes, β falls to 1 − c. Also 1 + ‖∇L‖² adds a pure number to a "
    "quantity with units, so β depends on how the loss is scaled.",
    rank=6,
    harm="Freezes the average while training moves fast, and unfreezes it, β = 1 − c, when it has settled and "
    "averaging would help.",
    figure=lambda: Curves(
        "β against the gradient norm, c = 0.1",
        "‖∇L‖",
        "β",
        {
            "printed": [(10 ** (k / 8 - 2), 1 - 0.1 / math.sqrt(1 + 10 ** (k / 4 - 4))) for k in range(33)],
            "right": [
                (10 ** (k / 8 - 2), 0.9999 - 0.1 * (1 - 1 / math.sqrt(1 + 10 ** (k / 4 - 4))))
                for k in range(33)
            ],
        },
        log_x=True,
    ),
)
def adaptive(beta: Form, effort: Effort) -> Outcome:
    norms = np.concatenate([[0.0], np.logspace(-3, 3, 61)])
    values = np.array([beta(float(g), 0.1) for g in norms])
    falls = bool(np.all(np.diff(values) <= 1e-15) and values[0] > values[-1])
    return truth(
        falls and bool(np.all((values >= 0) & (values < 1))),
        "β falls as the gradient grows, and stays in [0, 1)",
        f"β = {number(values[0], 4)} at no gradient, {number(values[-1], 4)} at a norm of 1000 (c = 0.1)",
    )


@statement(
    "38",
    section="10.2",
    says="Several averages with decays β_i, kept at once.",
    formula=r"\boldsymbol{\theta}_{ema}^{(i)} = \beta_i\boldsymbol{\theta}_{ema,t-1}^{(i)} + (1-\beta_i)\boldsymbol{\theta}_t, \quad i=1,\ldots,K",
    verdict=DEFINITION,
    method="each against (1)",
    printed=lambda beta, old, new: beta * old + (1 - beta) * new,
    note="The left side lacks the index t.",
)
def multi_scale(step: Form, effort: Effort) -> Outcome:
    betas, theta = np.array([0.5, 0.9, 0.99]), effort.rng.normal(size=50)
    averages = np.zeros(3)
    for value in theta:
        averages = step(betas, averages, value)
    exact = [ema(theta, float(b), 0.0)[-1] for b in betas]
    gap = float(np.abs(averages - exact).max())
    return defined(gap < 1e-12, "(1) for each β_i", f"largest difference {number(gap)}")


@statement(
    "39",
    section="10.2",
    says="The averages are combined with weights w_i.",
    formula=r"\boldsymbol{\theta}_{final} = \sum_{i=1}^K w_i\boldsymbol{\theta}_{ema}^{(i)}",
    verdict=DEFINITION,
    method="a constant run has to give its constant",
    printed=(0.2, 0.3, 0.5),
    needs="Σ w_i = 1 (the text says a weighted mean); the w_i may be negative: that is how other lengths are rebuilt post hoc",
)
def combination(weights: Form, effort: Effort) -> Outcome:
    total = float(np.dot(weights, [4.0, 4.0, 4.0]))
    return defined(math.isclose(total, 4.0), "4 from three averages of 4", number(total))


@statement(
    "10.2-selection",
    section="10.2",
    says="Choose among them, or weight them, by a validation set.",
    verdict=NOT_CHECKABLE,
    method="what the statement leaves open",
    printed=("the rule for the w_i", "a validation set apart from the test set"),
)
def selection(missing: Form, effort: Effort) -> Outcome:
    return undefined(missing, "a procedure that can be run")


def _proximal(theta: float, average: float, g: float, l1: float, l2: float, decay: float = 0.0) -> float:
    """The minimiser of g·x + λ₁(x − θ)² + λ₂(x − average)² + decay·x²."""
    return (l1 * theta + l2 * average - g / 2) / (l1 + l2 + decay)


@statement(
    "40",
    section="10.3",
    says="EMA, weight decay and dropout are one framework: minimise L + λ₁‖θ − θ_t‖² + λ₂‖θ − θ_ema‖².",
    formula=r"\boldsymbol{\theta}_{t+1} = \mathop{\arg\min}_{\boldsymbol{\theta}}\left[\mathcal{L}(\boldsymbol{\theta}) + \lambda_1\|\boldsymbol{\theta} - \boldsymbol{\theta}_t\|^2 + \lambda_2\|\boldsymbol{\theta} - \boldsymbol{\theta}_{ema}\|^2\right]",
    verdict=WRONG,
    method="which of the three some λ₁, λ₂ give, for a linear loss",
    printed=lambda theta, average, g, l1, l2, decay: _proximal(theta, average, g, l1, l2),
    corrected=r"\mathop{\arg\min}_{\boldsymbol{\theta}}\left[\mathcal{L}(\boldsymbol{\theta})+\lambda_1\|\boldsymbol{\theta}-\boldsymbol{\theta}_t\|^2+\lambda_2\|\boldsymbol{\theta}-\boldsymbol{\theta}_{ema}\|^2+\lambda_3\|\boldsymbol{\theta}\|^2\right] \text{: proximal SGD, a pull to the average, weight decay; no dropout}",
    right=lambda theta, average, g, l1, l2, decay: _proximal(theta, average, g, l1, l2, decay),
    note="Nothing in it pulls towards zero, so weight decay is no case of it; dropout is none either. An EMA that only "
    "watches is λ₂ = 0, where θ_ema drops out: λ₂ > 0 is another training, not an average of this one.",
)
def unified(minimiser: Form, effort: Effort) -> Outcome:
    rng, eta, decay = effort.rng, 0.1, 0.02
    cases = rng.normal(size=(200, 3))  # θ, average, gradient
    wanted = np.array(
        [(t - eta * g) / (1 + 2 * eta * decay) for t, _, g in cases]
    )  # SGD with weight decay, implicit form
    best = math.inf
    for l1 in np.logspace(-1, 2, 61):
        for l2 in [0.0, *np.logspace(-3, 1, 21)]:
            got = np.array([minimiser(t, a, g, float(l1), float(l2), decay) for t, a, g in cases[:40]])
            best = min(best, float(np.abs(got - wanted[:40]).max()))
    exact = np.array([minimiser(t, a, g, 1 / (2 * eta), 0.0, decay) for t, a, g in cases])
    best = min(best, float(np.abs(exact - wanted).max()))
    return truth(
        best < 1e-9,
        "SGD with weight decay for some λ₁, λ₂",
        f"off by at least {number(best)} at the best λ₁, λ₂ of 1343",
    )


@statement(
    "10.3-smooth",
    section="10.3",
    says="An EMA regularises towards a smooth trajectory.",
    verdict=NOT_CHECKABLE,
    method="what the statement leaves open",
    printed=(
        "the measure of smoothness",
        "the training that is changed: an EMA that only watches changes none",
    ),
)
def smooth(missing: Form, effort: Effort) -> Outcome:
    return undefined(missing, "a penalty on roughness")
