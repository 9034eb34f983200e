"""Rounding errors of an EMA (the article's §15.1–15.4), measured against float64 beside its formulas.

Three forms of the same update, each kept in one type:
    plain   average = β·average + (1 − β)·θ                       eq. (98)
    lerp    average += (1 − β)·(θ − average)                      eq. (100)
    kahan   the §15.3 code: lerp with compensated summation
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FORMS = ("plain", "lerp", "kahan")
TYPES = ("float32", "bfloat16", "float16")
DECAYS = (0.9, 0.99, 0.999, 0.9999, 0.99999)
LENGTHS = (1_000, 10_000, 100_000)
_UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}  # unit roundoff


def article_error(form: str, T: int, beta: float, epsilon: float) -> float:
    """What §15 says the relative error is: eq. (97) for plain and lerp, T·ε² for Kahan (the table of §15.3)."""
    return T * epsilon**2 if form == "kahan" else math.sqrt(T) * epsilon / (1.0 - beta)


def measure(
    *,
    forms: Sequence[str] = FORMS,
    types: Sequence[str] = TYPES,
    decays: Sequence[float] = DECAYS,
    lengths: Sequence[int] = LENGTHS,
    size: int = 256,
    seed: int = 0,
) -> list[dict[str, float | int | str]]:
    """One row for each form × type × decay × length: relative errors against a float64 EMA of the same weights.

    The weights are 1 + .01·(a random walk that settles, plus noise), rounded to each type before either average
    sees them, so that only the averaging is measured. Rows: form, type, decay, steps; error ‖a − a₆₄‖/‖a₆₄‖;
    error_of_path ‖a − a₆₄‖/‖a₆₄ − θ₀‖, the error as a share of the distance travelled; article, the article's
    formula. Takes about a minute at 100 000 steps on one core.
    """
    cases = [(f, t) for t in types for f in forms]
    betas = torch.tensor(decays, dtype=torch.float64)[:, None]  # all decays are rows of one tensor
    generator = torch.Generator().manual_seed(seed)
    start = 1.0 + 0.01 * torch.randn(size, dtype=torch.float64, generator=generator)
    first = {t: start.to(getattr(torch, t)) for t in types}
    exact = {t: first[t].double().repeat(len(decays), 1) for t in types}
    kept = {(f, t): first[t].repeat(len(decays), 1) for f, t in cases}
    compensation = {t: torch.zeros_like(kept["kahan", t]) for t in types if "kahan" in forms}
    rows: list[dict[str, float | int | str]] = []
    signal = torch.zeros(size, dtype=torch.float64)
    for step in range(1, max(lengths) + 1):
        drawn = torch.randn(2, size, dtype=torch.float64, generator=generator)
        signal.mul_(0.999).add_(drawn[0], alpha=0.03)
        theta = start + 0.01 * (signal + 0.3 * drawn[1])
        for t in types:
            seen = theta.to(first[t].dtype)
            exact[t].lerp_(seen.double().expand_as(exact[t]), 1.0 - betas)
        for f, t in cases:
            _step(f, kept[f, t], theta.to(first[t].dtype), betas, compensation.get(t))
        if step in lengths:
            for f, t in cases:
                rows += [
                    {
                        "form": f,
                        "type": t,
                        "decay": beta,
                        "steps": step,
                        **_errors(kept[f, t][i], exact[t][i], first[t]),
                        "article": article_error(f, step, beta, _UNIT[t]),
                    }
                    for i, beta in enumerate(decays)
                ]
    return rows


def _step(form: str, average: Tensor, theta: Tensor, betas: Tensor, compensation: Tensor | None) -> None:
    """One update with every operation rounded to the average's type, its constants too."""
    alpha = (1.0 - betas).to(average.dtype)
    if form == "plain":
        average.mul_(betas.to(average.dtype)).add_(theta * alpha)
    elif form == "lerp":
        average.add_((theta - average).mul_(alpha))
    elif compensation is not None:
        y = (theta - average).mul_(alpha).sub_(compensation)
        new = average + y
        compensation.copy_((new - average).sub_(y))
        average.copy_(new)


def _errors(got: Tensor, exact: Tensor, first: Tensor) -> dict[str, float]:
    error = (got.double() - exact).norm()
    return {
        "error": float(error / exact.norm()),
        "error_of_path": float(error / (exact - first.double()).norm().clamp_min(1e-300)),
    }
