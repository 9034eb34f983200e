"""§15.1 to §15.3: rounding and compensated summation, in numpy; the engine's own table with --deep."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from emabench.audit.sections.listings import STABLE_UPDATES, executed
from emabench.audit.statement import (
    APPROXIMATE,
    CONDITIONAL,
    DEFINITION,
    EMPIRICAL,
    HOLDS,
    WRONG,
    Curves,
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
from emabench.audit.tools import ema, number, percent

U = 2.0**-24  # unit roundoff of float32
EXACT = {
    0.875: 3,
    1 - 2.0**-10: 10,
}  # decays of which 1 − β is exact in float32, so that rounding alone is measured
Step = Callable[
    [Any, Any, Any, Any, Any], tuple[Any, Any]
]  # average, compensation, θ, β, 1 − β → average, compensation


def plain(a: Any, c: Any, theta: Any, beta: Any, fresh: Any) -> tuple[Any, Any]:
    """(98)."""
    return beta * a + fresh * theta, c


def lerp(a: Any, c: Any, theta: Any, beta: Any, fresh: Any) -> tuple[Any, Any]:
    """(100)."""
    return a + fresh * (theta - a), c


def kahan_printed(a: Any, c: Any, theta: Any, beta: Any, fresh: Any) -> tuple[Any, Any]:
    """(99)."""
    y = fresh * theta - c
    new = beta * a + y
    return new, (beta * a + y) - new


def kahan(a: Any, c: Any, theta: Any, beta: Any, fresh: Any) -> tuple[Any, Any]:
    """The code of §15.3."""
    y = fresh * (theta - a) - c
    new = a + y
    return new, (new - a) - y


@functools.cache
def errors(
    step: Step, beta: float, lengths: tuple[int, ...], size: int = 128, kind: str = "float32"
) -> tuple[tuple[float, float], ...]:
    """After each of `lengths` steps: relative error of an EMA kept in one type, and the largest compensation.

    The weights are 1 plus a slow signal and noise, rounded to that type before either average sees them.
    """
    T = max(lengths)
    rng = np.random.default_rng(7)
    real = np.dtype(kind).type
    b, fresh = real(beta), real(1 - beta)
    low = np.ones(size, kind)
    low += (0.01 * rng.normal(size=size)).astype(kind)
    high = low.astype(np.float64)
    c, largest, out = np.zeros(size, kind), 0.0, []
    signal = np.zeros(size)
    for t in range(1, T + 1):
        signal = 0.999 * signal + 0.03 * rng.normal(size=size)
        theta = (1 + 0.01 * (signal + 0.3 * rng.normal(size=size))).astype(kind)
        low, c = step(low, c, theta, b, fresh)
        high += (1 - beta) * (theta.astype(np.float64) - high)
        largest = max(largest, float(np.abs(c).max()))
        if t in lengths:
            out.append((float(np.linalg.norm(low - high) / np.linalg.norm(high)), largest))
    return tuple(out)


@statement(
    "15.1-eps32",
    section="15.1",
    says="ε_mach ≈ 10⁻⁷ in float32.",
    verdict=APPROXIMATE,
    method="numpy's value",
    printed=1e-7,
    note="The spacing 2⁻²³ at 1; a rounding errs by at most half of it, 6·10⁻⁸.",
)
def epsilon_32(value: Form, effort: Effort) -> Outcome:
    exact = float(np.finfo(np.float32).eps)
    return approximate(
        abs(value / exact - 1), 0.2, number(exact), f"{value:g}, {percent(value / exact - 1)} off"
    )


@statement(
    "15.1-eps64",
    section="15.1",
    says="ε_mach ≈ 10⁻¹⁶ in float64.",
    verdict=APPROXIMATE,
    method="numpy's value",
    printed=1e-16,
    note="2.2·10⁻¹⁶ spacing, 1.1·10⁻¹⁶ at most for one rounding.",
)
def epsilon_64(value: Form, effort: Effort) -> Outcome:
    exact = float(np.finfo(np.float64).eps)
    return approximate(
        abs(value / exact - 1), 0.6, number(exact), f"{value:g}, {percent(value / exact - 1)} off"
    )


@statement(
    "95",
    section="15.1",
    says="One step errs by ε(1 + β/(1 − β)) of the average.",
    formula=r"\frac{\|\boldsymbol{\epsilon}_{t+1}\|}{\|\boldsymbol{\theta}_{ema,t+1}\|} \approx \epsilon_{mach}\left(1 + \frac{\beta}{1-\beta}\right)",
    verdict=WRONG,
    method="one step of (98) in float32 on random weights, against float64",
    printed=lambda beta: 2 * U * (1 + beta / (1 - beta)),
    corrected=r"\|\boldsymbol{\epsilon}\|/\|\boldsymbol{\theta}_{ema}\|\lesssim \epsilon_{mach}\ \text{a step, whatever } \beta \text{ is}",
    right=lambda beta: 2 * U,
    note="ε/(1 − β) is what the errors of many steps can add up to at worst, not what one step makes.",
)
def one_step(bound: Form, effort: Effort) -> Outcome:
    rng, worst = effort.rng, {}
    for beta in (0.9, 0.999, 0.9999):
        a, theta = (rng.uniform(0.5, 2.0, size=effort.times(100_000)).astype(np.float32) for _ in range(2))
        got, _ = plain(a, 0, theta, np.float32(beta), np.float32(1 - beta))
        exact = beta * a.astype(np.float64) + (1 - beta) * theta.astype(np.float64)
        worst[beta] = float(np.abs(got / exact - 1).max())
    return truth(
        all(w / 3 < bound(b) < 3 * w for b, w in worst.items()),
        "the largest error of a step: " + ", ".join(f"{number(w, 2)} at β = {b:g}" for b, w in worst.items()),
        ", ".join(number(bound(b), 2) for b in worst),
    )


def _growth(error: Form, effort: Effort) -> Outcome:
    shown, holds = [], True
    for beta, short in {**{beta: 10 * 2**power for beta, power in EXACT.items()}, 0.999: 100}.items():
        long = effort.times(20_000, 200_000)
        measured = [e for e, _ in errors(plain, beta, (short, long))]
        claimed = [error(T, beta) for T in (short, long)]
        holds &= all(m / 6 < c < 6 * m for m, c in zip(measured, claimed, strict=True))
        shown.append((f"β = {beta:.5g}, T = {short} and {long}", measured, claimed))
    return truth(
        holds,
        "; ".join(f"{number(m[0], 2)}, {number(m[1], 2)} at {where}" for where, m, _ in shown),
        "; ".join(f"{number(c[0], 2)}, {number(c[1], 2)}" for _, _, c in shown),
    )


def _right_growth(T: float, beta: float) -> float:
    amiss = abs(
        float(np.float32(beta)) + float(np.float32(1 - beta)) - 1
    )  # the shares of (98) do not sum to 1
    return U * math.sqrt((1 - beta ** (2 * T)) / (1 - beta**2)) + amiss * (1 - beta**T) / (1 - beta)


RIGHT_GROWTH = r"\frac{\|\boldsymbol{\epsilon}_T\|}{\|\boldsymbol{\theta}_{ema,T}\|}\approx u\sqrt{\frac{1-\beta^{2T}}{1-\beta^2}}+\frac{|fl(\beta)+fl(1-\beta)-1|}{1-\beta}(1-\beta^T),\qquad u=\epsilon_{mach}/2"


@statement(
    "96",
    section="15.1",
    says="The error grows as √T·ε/(1 − β) times the largest average.",
    formula=r"\|\boldsymbol{\epsilon}_T\| \approx \sqrt{T} \cdot \epsilon_{mach} \cdot \max_t \|\boldsymbol{\theta}_{ema,t}\| \cdot \left(\frac{1}{1-\beta}\right)",
    verdict=WRONG,
    method="(98) in float32 against float64, at two lengths and three decays",
    printed=lambda T, beta: math.sqrt(T) * 2 * U / (1 - beta),
    corrected=RIGHT_GROWTH,
    right=_right_growth,
    table="numerics",
    note="An EMA forgets its rounding errors as it forgets everything else: after 1/(1 − β) steps they stop growing.",
    figure=lambda: Curves(
        "Relative error of an EMA in float32, β = 0.875",
        "T, steps",
        "relative error",
        {
            "printed": [(T, math.sqrt(T) * 2 * U * 8) for T in (10, 100, 1000, 10_000)],
            "measured": [
                (T, e)
                for T, (e, _) in zip(
                    (10, 100, 1000, 10_000), errors(plain, 0.875, (10, 100, 1000, 10_000)), strict=True
                )
            ],
            "right": [(T, _right_growth(T, 0.875)) for T in (10, 100, 1000, 10_000)],
        },
        log_x=True,
        log_y=True,
    ),
)
def accumulated(error: Form, effort: Effort) -> Outcome:
    return _growth(error, effort)


@statement(
    "97",
    section="15.1",
    says="The relative error grows as √T·ε/(1 − β).",
    formula=r"\text{RelErr}_T = \frac{\|\boldsymbol{\epsilon}_T\|}{\|\boldsymbol{\theta}_{ema,T}\|} \approx \sqrt{T} \cdot \epsilon_{mach} \cdot \frac{1}{1-\beta}",
    verdict=WRONG,
    method="(98) in float32 against float64, at two lengths and three decays",
    printed=lambda T, beta: math.sqrt(T) * 2 * U / (1 - beta),
    corrected=RIGHT_GROWTH,
    right=_right_growth,
    table="numerics",
)
def relative(error: Form, effort: Effort) -> Outcome:
    return _growth(error, effort)


@statement(
    "15.1-example",
    section="15.1",
    says="√10⁵ × 10⁻⁷ × 10 ≈ 0.03 = 3 %.",
    formula=r"\sqrt{10^5}\times 10^{-7}\times 10\approx 0.03 = 3\%",
    verdict=WRONG,
    method="arithmetic",
    printed=0.03,
    corrected=r"3.2\cdot 10^{-4} = 0.03\,\%",
    right=0.00032,
    table="numerics",
    note="A hundred times too large, of a formula that is a thousand times too large.",
)
def three_per_cent(value: Form, effort: Effort) -> Outcome:
    exact = math.sqrt(1e5) * 1e-7 * 10
    return truth(abs(value / exact - 1) < 0.05, f"{exact:.5f}", f"{value:g}")


@statement(
    "15.1-matters",
    section="15.1",
    says="So an EMA with β = 0.9 is off by per cents after 10⁵ steps of float32, which may matter in large training.",
    verdict=WRONG,
    method="(98) in float32 with β = 0.9, against float64",
    printed=0.03,
    corrected=r"2\cdot 10^{-7}",
    right=2e-7,
    table="numerics",
    note="What can matter is β = 0.9999 and beyond in (98), where fl(β) + fl(1 − β) ≠ 1: use (100).",
)
def matters(claimed: Form, effort: Effort) -> Outcome:
    ((measured, _),) = errors(plain, 0.9, (effort.times(10_000, 100_000),))
    return truth(
        measured / 5 < claimed < 5 * measured,
        f"{number(measured, 2)} (it no longer grows after some 30 steps)",
        f"{claimed:g}",
    )


@statement(
    "98",
    section="15.2",
    says="The recursion as it is computed.",
    formula=r"\tilde{\boldsymbol{\theta}}_{ema,t} = \beta\tilde{\boldsymbol{\theta}}_{ema,t-1} + (1-\beta)\boldsymbol{\theta}_t",
    verdict=DEFINITION,
    method="against (1), exact rationals",
    printed=plain,
)
def standard(step: Form, effort: Effort) -> Outcome:
    from fractions import Fraction

    beta = Fraction(9, 10)
    got = step(Fraction(3), 0, Fraction(5), beta, 1 - beta)[0]
    return defined(got == Fraction(16, 5), "(1): 16/5 from 3 and 5 at β = 9/10", str(got))


@statement(
    "15.2-cancellation",
    section="15.2",
    says="For β ≈ 1 there is cancellation: βθ_ema and (1 − β)θ_t are of similar size and opposite sign.",
    verdict=WRONG,
    method="signs and sizes of the two terms along an EMA of weights",
    printed=(-1, 1.0),
    corrected=r"\text{same sign, sizes apart by } \beta/(1-\beta)\text{: the small term loses its low digits}",
    right=(1, 999.0),
    note="What is lost is lost by absorption, and by fl(β) + fl(1 − β) ≠ 1.",
)
def cancellation(claim: Form, effort: Effort) -> Outcome:
    sign, ratio = claim
    beta = 0.999
    theta = 1 + 0.01 * effort.rng.normal(size=2000)
    average = np.array(ema(theta, beta, 1.0))
    old, new = beta * average[:-1], (1 - beta) * theta[1:]
    share, sizes = float((np.sign(old * new) == sign).mean()), float(np.median(np.abs(old / new)))
    return truth(
        share > 0.99 and 0.5 < sizes / ratio < 2,
        f"{'same' if sign > 0 else 'opposite'} signs, sizes {number(ratio)} to 1",
        f"such signs in {percent(share, 3)} of steps, sizes {number(sizes)} to 1 (β = 0.999)",
    )


@statement(
    "99",
    section="15.2",
    says="Kahan summation: c keeps what (βθ_ema + y) loses.",
    formula=r"\begin{aligned} \boldsymbol{y}_t &= (1-\beta)\boldsymbol{\theta}_t - \boldsymbol{c}_t\\ \tilde{\boldsymbol{\theta}}_{ema,t} &= \beta\tilde{\boldsymbol{\theta}}_{ema,t-1} + \boldsymbol{y}_t\\ \boldsymbol{c}_{t+1} &= (\beta\tilde{\boldsymbol{\theta}}_{ema,t-1} + \boldsymbol{y}_t) - \tilde{\boldsymbol{\theta}}_{ema,t} \end{aligned}",
    verdict=WRONG,
    method="in float32 as printed, against float64",
    printed=kahan_printed,
    corrected=r"\boldsymbol{y}_t=(1-\beta)(\boldsymbol{\theta}_t-\tilde{\boldsymbol{\theta}}_{ema,t-1})-\boldsymbol{c}_t,\quad \tilde{\boldsymbol{\theta}}_{ema,t}=\tilde{\boldsymbol{\theta}}_{ema,t-1}+\boldsymbol{y}_t,\quad \boldsymbol{c}_{t+1}=(\tilde{\boldsymbol{\theta}}_{ema,t}-\tilde{\boldsymbol{\theta}}_{ema,t-1})-\boldsymbol{y}_t",
    right=kahan,
    table="numerics",
    note="c is computed as a number less itself: always zero. The code of §15.3 is right.",
)
def compensation(step: Form, effort: Effort) -> Outcome:
    beta, T = 1 - 2.0**-10, effort.times(10_000, 50_000)
    ((error, largest),) = errors(step, beta, (T,))
    ((without, _),) = errors(plain, beta, (T,))
    return truth(
        largest > 0 and error < 1.2 * U,
        f"an error of one rounding, at most {number(U, 2)}; c not zero",
        f"{number(error, 2)} (without compensation {number(without, 2)}); largest |c| {number(largest, 2)}",
    )


@statement(
    "15.2-order",
    section="15.2",
    says="Kahan summation improves the relative error from O(√T·ε) to O(T·ε²).",
    formula=r"\mathcal{O}(\sqrt{T}\epsilon_{mach}) \to \mathcal{O}(T\epsilon_{mach}^2)",
    verdict=WRONG,
    method="the code of §15.3 in float32, against float64, at two lengths",
    printed=lambda T: T * (2 * U) ** 2,
    corrected=r"\mathcal{O}(\epsilon_{mach})\text{: the average is still stored in } 24 \text{ bits}",
    right=lambda T: U / 2,
    table="numerics",
)
def kahan_order(error: Form, effort: Effort) -> Outcome:
    lengths = (1000, effort.times(10_000, 100_000))
    measured = [e for e, _ in errors(kahan, 0.9, lengths)]
    return truth(
        all(m / 5 < error(T) < 5 * m for T, m in zip(lengths, measured, strict=True)),
        ", ".join(f"{number(m, 2)} after {T} steps" for T, m in zip(lengths, measured, strict=True)),
        ", ".join(number(error(T), 2) for T in lengths),
    )


@statement(
    "100",
    section="15.3",
    says="The EMA moves by (1 − β) of the difference.",
    formula=r"\boldsymbol{\theta}_{ema,t} = \boldsymbol{\theta}_{ema,t-1} + (1-\beta)(\boldsymbol{\theta}_t - \boldsymbol{\theta}_{ema,t-1})",
    verdict=HOLDS,
    method="sympy: equal to (1)",
    printed=lambda a, theta, beta: a + (1 - beta) * (theta - a),
)
def incremental(step: Form, effort: Effort) -> Outcome:
    import sympy

    a, theta, beta = sympy.symbols("a theta beta")
    gap = sympy.expand(step(a, theta, beta) - (beta * a + (1 - beta) * theta))
    return truth(gap == 0, "(1)", f"difference {gap}")


@statement(
    "15.3-stable",
    section="15.3",
    says="(100) is the more stable form.",
    verdict=HOLDS,
    method="both in float32, against float64, at three decays",
    printed=lerp,
    table="numerics",
    note="Mostly because the shares of (98), fl(β) and fl(1 − β), do not sum to 1: their error is multiplied by 1/(1 − β).",
)
def more_stable(step: Form, effort: Effort) -> Outcome:
    T = (effort.times(6000, 60_000),)
    ratios = {b: errors(plain, b, T)[0][0] / errors(step, b, T)[0][0] for b in (0.9, 0.999, 0.9999)}
    return truth(
        min(ratios.values()) > 1.5,
        "smaller errors than (98)",
        ", ".join(f"{number(r)} times smaller at β = {b:g}" for b, r in ratios.items()),
    )


@statement(
    "15.3-why",
    section="15.3",
    says="It is, because the increment is small and loses no digits.",
    verdict=CONDITIONAL,
    method="both forms at decays whose 1 − β is exact in float32",
    printed=lerp,
    needs="1 − β is exact; for other decays most of the gain is that the shares sum to 1",
)
def why_stable(step: Form, effort: Effort) -> Outcome:
    T = (effort.times(6000, 60_000),)
    exact, inexact = (errors(plain, b, T)[0][0] / errors(step, b, T)[0][0] for b in (1 - 2.0**-13, 0.9999))
    return conditional(
        inexact < 1.5 * exact,
        exact > 1.2,
        "the gain over (98) is that of small increments",
        f"{number(exact)} times at 1 − β = 2⁻¹³, {number(inexact)} times at β = 0.9999",
    )


class _Counted:
    """A number that counts the operations done with it."""

    counts: dict[str, int]

    def __init__(self, counts: dict[str, int]) -> None:
        self.counts = counts

    def _did(self, kind: str) -> _Counted:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        return self

    def __add__(self, _: object) -> _Counted:
        return self._did("add")

    def __sub__(self, _: object) -> _Counted:
        return self._did("add")

    def __mul__(self, _: object) -> _Counted:
        return self._did("multiply")


def _operations(step: Step) -> dict[str, int]:
    counts: dict[str, int] = {}
    step(*(_Counted(counts) for _ in range(5)))
    return counts


@statement(
    "15.3-cost",
    section="15.3",
    says="Beyond (98), the improved form costs one subtraction and Kahan three additions or subtractions.",
    verdict=CONDITIONAL,
    method="operations counted as they happen, 1 − β given",
    printed=(1, 3),
    corrected=r"\text{improved: } 0 \text{ (one subtraction more, one multiplication less); Kahan: } 3",
    right=(0, 3),
    needs="only additions and subtractions count, not the multiplication that the improved form saves, and Kahan is (99); "
    "the listing of §15.3 has four more and a multiplication less",
)
def extra_operations(claimed: Form, effort: Effort) -> Outcome:
    totals = {
        name: sum(_operations(step).values())
        for name, step in (("plain", plain), ("lerp", lerp), ("kahan", kahan))
    }
    extra = (totals["lerp"] - totals["plain"], totals["kahan"] - totals["plain"])
    added = tuple(_operations(step)["add"] - _operations(plain)["add"] for step in (lerp, kahan_printed))
    return conditional(
        tuple(claimed) == extra,
        tuple(claimed) == added,
        f"{extra[0]} and {extra[1]} operations more than (98)'s {totals['plain']}; {added[0]} and {added[1]} additions and "
        "subtractions more for (100) and (99)",
        f"{claimed[0]} and {claimed[1]}",
    )


@statement(
    "15.3-orders",
    section="15.3",
    says="Both (98) and (100) err by O(√T·ε).",
    verdict=WRONG,
    method="growth from 1000 to 20 000 steps in float32, β = 0.9",
    printed=0.5,
    corrected=r"\mathcal{O}(T^0)\text{: neither grows with } T \text{ beyond } 1/(1-\beta)",
    right=0.0,
    table="numerics",
)
def orders(exponent: Form, effort: Effort) -> Outcome:
    lengths = (1000, effort.times(20_000, 100_000))
    slopes = []
    for step in (plain, lerp):
        first, last = (e for e, _ in errors(step, 0.9, lengths))
        slopes.append(math.log(last / first) / math.log(lengths[1] / lengths[0]))
    return truth(
        all(abs(s - exponent) < 0.1 for s in slopes),
        f"errors ∝ T^{slopes[0]:.2f} and T^{slopes[1]:.2f}".replace("-", "−"),
        f"T^{exponent:g}",
    )


@statement(
    "15.3-table",
    section="15.3",
    says="The table of methods: standard, improved, Kahan.",
    verdict=EMPIRICAL,
    method="order of the three errors in float32; with --deep, the engine's own table",
    printed=("plain", "lerp", "kahan"),
    table="numerics",
)
def three_methods(order: Form, effort: Effort) -> Outcome:
    steps = {"plain": plain, "lerp": lerp, "kahan": kahan}
    measured = {name: errors(step, 0.999, (6000,))[0][0] for name, step in steps.items()}
    found = tuple(sorted(measured, key=lambda name: -measured[name]))
    text = ", ".join(f"{name} {number(measured[name], 2)}" for name in found)
    if effort.deep:
        from emabench.averaging.numerics import measure

        rows = measure(types=("float32", "bfloat16"), decays=(0.9, 0.999), lengths=(1000, 10_000))
        engine = {
            str(r["form"]): float(r["error"])
            for r in rows
            if (r["type"], r["decay"], r["steps"]) == ("float32", 0.999, 10_000)
        }
        found = (
            tuple(sorted(engine, key=lambda name: -engine[name]))
            if found == tuple(sorted(engine, key=lambda n: -engine[n]))
            else ()
        )
        text += "; engine: " + ", ".join(f"{name} {number(e, 2)}" for name, e in engine.items())
    return reported(
        found == tuple(order), "errors fall from each to the next", text + " (float32, β = 0.999)"
    )


@statement(
    "15.3-listing",
    section="15.3",
    says="The three code fragments are updates of the EMA.",
    formula=STABLE_UPDATES,
    listing=True,
    verdict=CONDITIONAL,
    method="run as printed; each fragment alone with the compensation set to zero, against (1)",
    printed=STABLE_UPDATES,
    needs="each fragment is an alternative, and compensation is zero before the first step",
)
def fragments(source: Form, effort: Effort) -> Outcome:
    def given() -> dict[str, Any]:
        return {"beta": 0.9, "param": 5.0, "ema_param": 3.0}

    try:
        whole = executed(source, **given())["ema_param"]
    except NameError as error:
        whole = error
    alone = [executed(part, **given(), compensation=0.0)["ema_param"] for part in source.split("\n\n")]
    return conditional(
        isinstance(whole, float) and math.isclose(whole, 3.2),
        all(math.isclose(value, 3.2) for value in alone),
        "3.2 from 3 and 5 at β = 0.9",
        f"as printed: {whole if isinstance(whole, float) else f'NameError ({whole})'}; alone: {', '.join(f'{v:g}' for v in alone)}",
    )
