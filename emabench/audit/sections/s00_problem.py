"""The opening: how SignSGD relates to Adam."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from emabench.audit.statement import (
    CONDITIONAL,
    HOLDS,
    NOT_CHECKABLE,
    Effort,
    Form,
    Outcome,
    conditional,
    statement,
    truth,
    undefined,
)
from emabench.audit.tools import number


def adam_update(gradients: np.ndarray, beta1: float, beta2: float, epsilon: float = 0.0) -> np.ndarray:
    """Adam's update over −η after these gradients [steps, size], bias corrections included."""
    m = v = np.zeros(gradients.shape[1])
    for g in gradients:
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    steps = len(gradients)
    return (m / (1 - beta1**steps)) / (np.sqrt(v / (1 - beta2**steps)) + epsilon)


@statement(
    "0-signsgd",
    section="0",
    says="SignSGD is Adam with β₁ = β₂ = 0.",
    verdict=CONDITIONAL,
    method="both updates on random gradients",
    printed=(0.0, 0.0),
    states="β₁ = β₂ = 0",
    needs="Adam's ε is zero (or far below every |gradient|), and no gradient is zero",
)
def signsgd_is_adam(betas: Form, effort: Effort) -> Outcome:
    beta1, beta2 = betas
    g = effort.rng.normal(size=(7, 50))
    gap = np.abs(adam_update(g, beta1, beta2) - np.sign(g[-1])).max()
    small = g * 1e-9
    gap_with_epsilon = np.abs(adam_update(small, beta1, beta2, epsilon=1e-8) - np.sign(g[-1])).max()
    return conditional(
        max(gap, gap_with_epsilon) < 1e-9,
        gap < 1e-9,
        "update = sign(g)",
        f"largest difference {number(gap)} at ε = 0; {number(gap_with_epsilon)} at ε = 1e-8 and gradients of 1e-9",
    )


@statement(
    "0-first-step",
    section="0",
    says="Adam's first update is SignSGD's, whatever β₁ and β₂ are.",
    verdict=CONDITIONAL,
    method="Adam's update on random gradients and decays",
    printed=1,
    states="any β₁, β₂",
    needs="bias corrections are on, ε is zero, no gradient is zero",
)
def first_step_is_sign(steps: Form, effort: Effort) -> Outcome:
    rng = effort.rng
    g = rng.normal(size=(steps, 50))
    betas = rng.uniform(0.1, 0.9999, size=(50, 2))
    gap = max(float(np.abs(adam_update(g, b[0], b[1]) - np.sign(g[-1])).max()) for b in betas)
    plain = max(float(abs((1 - b[0]) / np.sqrt(1 - b[1]) - 1)) for b in betas)  # without corrections
    return conditional(
        max(gap, plain) < 1e-9,
        gap < 1e-9,
        "update = sign(g) for every β₁, β₂",
        f"largest difference {number(gap)} with bias corrections, {number(plain)} without",
    )


def _sign(g: np.ndarray) -> np.ndarray:
    return np.sign(g[-1])


@statement(
    "0-rms",
    section="0",
    says="The RMS of SignSGD's update is always 1; Adam's is not.",
    verdict=HOLDS,
    method="RMS of both on random gradients",
    printed=_sign,
    states="no gradient is zero",
)
def rms_of_updates(update: Callable[[np.ndarray], np.ndarray], effort: Effort) -> Outcome:
    g = effort.rng.normal(size=(100, 4000))
    sign, adam = (float(np.sqrt(np.mean(u**2))) for u in (update(g), adam_update(g, 0.9, 0.999)))
    return truth(
        abs(sign - 1) < 1e-12 and abs(adam - 1) > 0.1,
        "1 for SignSGD, another number for Adam",
        f"SignSGD {number(sign, 6)}, Adam (0.9, 0.999) {number(adam)} on independent gradients "
        f"(√((1 − β₁)/(1 + β₁)) = {number(np.sqrt(0.1 / 1.9))})",
    )


@statement(
    "0-momentum",
    section="0",
    says="Momentum is the core reason why Adam's update RMS is not 1.",
    verdict=NOT_CHECKABLE,
    method="what the statement leaves open",
    printed=("what share of the difference a core reason must explain",),
    note="With independent gradients momentum alone gives √((1 − β₁)/(1 + β₁)) = 0.23; see rms.",
)
def momentum_is_why(missing: Form, effort: Effort) -> Outcome:
    return undefined(missing, "momentum explains the difference")
