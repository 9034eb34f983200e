"""§15.4: mixed precision and memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from emabench.audit.statement import (
    APPROXIMATE,
    CONDITIONAL,
    HOLDS,
    WRONG,
    Effort,
    Form,
    Outcome,
    approximate,
    conditional,
    statement,
    truth,
)
from emabench.audit.tools import ema, number, percent


def _bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 rounded to bfloat16's 8 bits, to nearest even."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


ROUNDED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "float32": lambda x: x.astype(np.float32),
    "float16": lambda x: x.astype(np.float16).astype(np.float32),
    "bfloat16": _bfloat16,
}


def _in_half(master: bool) -> Form:
    def trained(steps: int, change: float) -> float:
        half, full = np.float16(1.0), np.float32(1.0)
        for _ in range(steps):
            if master:
                full = np.float32(full - np.float32(change))
                half = np.float16(full)
            else:
                half = np.float16(half - np.float16(change))
        return float(half)

    return trained


@statement(
    "101",
    section="15.4",
    says="Train in float16 (θ ← float16(θ − η∇L)), average in float32.",
    formula=r"\begin{aligned} \boldsymbol{\theta}_{fp16} &\leftarrow \text{float16}(\boldsymbol{\theta}_{fp16} - \eta\nabla L)\\ \boldsymbol{\theta}_{ema,fp32} &\leftarrow \text{float32}(\beta\boldsymbol{\theta}_{ema,fp32} + (1-\beta)\text{float32}(\boldsymbol{\theta}_{fp16})) \end{aligned}",
    verdict=WRONG,
    method="1000 steps of 10⁻⁴ from a weight of 1",
    printed=_in_half(master=False),
    corrected=r"\boldsymbol{\theta}_{fp32}\leftarrow\boldsymbol{\theta}_{fp32}-\eta\nabla L,\quad \boldsymbol{\theta}_{fp16}\leftarrow\text{float16}(\boldsymbol{\theta}_{fp32}),\quad \boldsymbol{\theta}_{ema,fp32}\leftarrow\beta\boldsymbol{\theta}_{ema,fp32}+(1-\beta)\boldsymbol{\theta}_{fp32}",
    right=_in_half(master=True),
    note="Near 1 float16 has steps of 0.001 (0.0005 below): a change of less than half of that is lost, every time. Mixed "
    "precision keeps float32 weights. The EMA's line is right: 101-ema.",
    rank=9,
    harm="Weights in float16 alone stop learning as soon as a step is below half of their spacing, 0.0005 near 1: no "
    "error, no warning, a loss that stands still.",
)
def half_weights(trained: Form, effort: Effort) -> Outcome:
    end = trained(1000, 1e-4)
    return truth(abs(end - 0.9) < 1e-3, "0.9", f"{end:.4f}")


@statement(
    "101-ema",
    section="15.4",
    says="Keep the EMA in float32 and turn float16 weights to float32 first.",
    verdict=HOLDS,
    method="an EMA of float16 weights kept in either type, against float64",
    printed="float32",
)
def average_in_32(kind: Form, effort: Effort) -> Outcome:
    rng, T = effort.rng, 3000
    theta = 1 + 0.05 * (1 - np.exp(-np.arange(T) / 500))[:, None] + 0.002 * rng.normal(size=(T, 64))
    theta = theta.astype(np.float16).astype(np.float32)
    lost = {}
    for each, rounded in ROUNDED.items():
        average, exact = theta[0].copy(), theta[0].astype(np.float64)
        for row in theta:
            average = rounded(average + rounded(np.float32(0.001) * rounded(row - average)))
            exact += 0.001 * (row.astype(np.float64) - exact)
        lost[each] = float(np.linalg.norm(average - exact) / np.linalg.norm(exact - theta[0]))
    return truth(
        lost[kind] < 1e-3 and lost[kind] == min(lost.values()),
        "next to nothing lost of the way",
        ", ".join(f"{percent(v)} lost in {k}" for k, v in lost.items()),
    )


@statement(
    "15.4-error",
    section="15.4",
    says="The conversion to float16 adds an error of about 10⁻⁴.",
    verdict=APPROXIMATE,
    method="rounding of random weights to float16",
    printed=1e-4,
    note="2·10⁻⁴ on average, 5·10⁻⁴ at most, of weights that float16 holds at full precision (above 6·10⁻⁵).",
)
def conversion(claimed: Form, effort: Effort) -> Outcome:
    x = np.exp(effort.rng.uniform(-6, 1, size=effort.times(100_000)))
    error = np.abs(x.astype(np.float16).astype(np.float64) / x - 1)
    rms = float(np.sqrt((error**2).mean()))
    return approximate(
        abs(claimed / rms - 1),
        0.7,
        f"{number(rms, 2)} rms, {number(float(error.max()), 2)} at most",
        f"{claimed:g}",
    )


@statement(
    "15.4-smoothing",
    section="15.4",
    says="The EMA smooths that error away.",
    verdict=CONDITIONAL,
    method="an EMA of rounded weights against one of exact weights",
    printed=0.99,
    needs="the weights vary from step to step by more than a spacing of float16; weights at rest keep their error",
)
def conversion_smoothed(beta: Form, effort: Effort) -> Outcome:
    rng, T = effort.rng, 3000
    centre = rng.uniform(1, 2, size=200)
    left = {}
    for name, spread in (("moving", 0.01), ("at rest", 0.0)):
        theta = centre + spread * rng.normal(size=(T, 200))
        rounded = theta.astype(np.float16).astype(np.float64)
        gap = np.array(ema(rounded - theta, beta, np.zeros(200))[-1])
        left[name] = float(np.linalg.norm(gap) / np.linalg.norm(rounded[-1] - theta[-1]))
    return conditional(
        max(left.values()) < 0.3,
        left["moving"] < 0.3,
        "little of the rounding error left",
        ", ".join(f"{percent(v, 3)} left if {k}" for k, v in left.items()),
    )


def _bytes(weights: int, gradients: int, state: int, master: int, average: int) -> int:
    return weights + gradients + state + master + average


@statement(
    "102",
    section="15.4",
    says="float16 training with a float32 EMA saves a quarter of the memory (GPT-3).",
    formula=r"\text{memory saved} = \frac{\text{number of parameters}}{2} \times (1 - \frac{1}{2}) = \frac{1}{4}\text{ of all memory}",
    verdict=WRONG,
    method="bytes a parameter with Adam, with and without the float32 weights that mixed precision needs",
    printed=0.25,
    corrected=r"\frac{20-20}{20}=0\ \text{with float32 weights kept},\quad \frac{20-16}{20}=\tfrac15\ \text{without; the EMA itself adds 4 bytes a parameter}",
    right=0.0,
    note="Weights and gradients halve (8 → 4 bytes), the float32 copy takes the 4 back; Adam's 8 stay. What halves is "
    "activations, which the formula does not have. It also divides a number of parameters and calls it memory.",
)
def memory(share: Form, effort: Effort) -> Outcome:
    full = _bytes(4, 4, 8, 0, 4)
    mixed = _bytes(2, 2, 8, 4, 4)
    bare = _bytes(2, 2, 8, 0, 4)
    return truth(
        math.isclose(share, 1 - mixed / full),
        f"{full} and {mixed} bytes a parameter: {percent(1 - mixed / full)} saved ({percent(1 - bare / full)} if no float32 weights are kept, which (101) shows to fail)",
        percent(share),
    )
