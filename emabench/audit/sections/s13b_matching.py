"""§13.4 and §13.5: the RC filter, and the best cutoff."""

from __future__ import annotations

import functools
import math

import numpy as np

from emabench.audit.sections.s13a_response import _against_discrete, _words, continuous, exact
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
from emabench.audit.tools import ema, number, percent


@statement(
    "74",
    section="13.4",
    says="A first-order RC filter is 1/(1 + 2πif·RC).",
    formula=r"H_{RC}(f) = \frac{1}{1 + 2\pi if RC}",
    verdict=DEFINITION,
    method="sympy: RC·y′ + y = x, solved at one frequency",
    printed=lambda w, RC: 1 / (1 + w * RC),
)
def rc_filter(response: Form, effort: Effort) -> Outcome:
    import sympy

    w, RC, y = sympy.symbols("w RC y")
    solved = sympy.solve(RC * w * y + y - 1, y)[0]
    return defined(
        sympy.simplify(solved - response(w, RC)) == 0, str(solved) + ", w = 2πif", str(response(w, RC))
    )


@statement(
    "75",
    section="13.4",
    says="The EMA filter is (63).",
    formula=r"H_{EMA}(f) = \frac{1-\beta}{1-\beta + 2\pi if}",
    verdict=APPROXIMATE,
    method="against (63), and the discrete filter",
    printed=continuous,
    corrected=r"H(f)=\frac{1-\beta}{1-\beta e^{-2\pi if}}",
    right=exact,
    note="As (63).",
)
def repeated(response: Form, effort: Effort) -> Outcome:
    errors = _against_discrete(response, lambda H, b, f: abs(H(b, f) / exact(b, f) - 1), 0.99)
    return approximate(
        max(errors[:2]), 0.1, "the discrete filter's response", _words(errors).replace("0.9)", "0.99)")
    )


@statement(
    "13.4-rc",
    section="13.4",
    says="(74) and (75) are the same with RC = 1/(1 − β).",
    verdict=HOLDS,
    method="sympy",
    printed=lambda a: 1 / a,
    states="(74), (75)",
)
def same_filter(RC: Form, effort: Effort) -> Outcome:
    import sympy

    a, w = sympy.symbols("a w", positive=True)
    gap = sympy.simplify(1 / (1 + w * RC(a)) - a / (a + w))
    return truth(gap == 0, "(75)", f"difference {gap}, a = 1 − β, w = 2πif")


@statement(
    "13.4-step-rc",
    section="13.4",
    says="The RC filter answers a step with 1 − e^(−t/RC).",
    verdict=HOLDS,
    method="the differential equation, integrated numerically",
    printed=lambda t, RC: 1 - math.exp(-t / RC),
    states="from rest",
)
def rc_step(answer: Form, effort: Effort) -> Outcome:
    RC, y, h = 2.0, 0.0, 1e-4
    for _ in range(30000):  # midpoint rule up to t = 3
        y += h * (1 - (y + h / 2 * (1 - y) / RC)) / RC
    return truth(abs(y - answer(3.0, RC)) < 1e-6, f"{y:.6f} at t = 3, RC = 2", f"{answer(3.0, RC):.6f}")


@statement(
    "13.4-step-ema",
    section="13.4",
    says="The EMA answers a step with 1 − β^t.",
    verdict=HOLDS,
    method="the recursion (1)",
    printed=lambda t, beta: 1 - beta**t,
    states="from zero, the step at t = 1",
)
def ema_step(answer: Form, effort: Effort) -> Outcome:
    path = ema([1.0] * 50, 0.9, 0.0)
    gap = max(abs(path[t - 1] - answer(t, 0.9)) for t in range(1, 51))
    return truth(gap < 1e-12, "(1) on a step, t = 1 … 50", f"largest difference {number(gap)}")


@statement(
    "76",
    section="13.4",
    says="The time constant, in which a signal rises to 63.2 %, is 1/(1 − β).",
    formula=r"\tau_{RC} = RC = \frac{1}{1-\beta}",
    verdict=APPROXIMATE,
    method="how far the EMA has risen after 1/(1 − β) steps",
    printed=lambda beta: 1 / (1 - beta),
    corrected=r"\tau=\frac{1}{\ln(1/\beta)}\ \text{for the EMA}",
    right=lambda beta: -1 / math.log(beta),
    note="Exact for the RC filter. The EMA has risen to 65 % at β = 0.9, 75 % at 0.5.",
)
def time_constant(tau: Form, effort: Effort) -> Outcome:
    risen = {b: 1 - b ** tau(b) for b in (0.5, 0.9, 0.99)}
    error = max(abs(r / (1 - math.exp(-1)) - 1) for b, r in risen.items() if b >= 0.9)
    return approximate(
        error,
        0.04,
        f"{percent(1 - math.exp(-1), 4)}",
        ", ".join(f"{percent(r, 3)} at β = {b:g}" for b, r in risen.items()),
    )


@statement(
    "77",
    section="13.5",
    says="The reconstruction error is the integral of |1 − H|²S + |H|²N.",
    formula=r"\mathcal{J}(\beta) = \int_{-\infty}^{\infty} [|1-H(f)|^2 S(f) + |H(f)|^2 N(f)]df",
    verdict=CONDITIONAL,
    method="simulated error of a filtered signal in noise, at one frequency",
    printed=lambda H, S, N: abs(1 - H) ** 2 * S + abs(H) ** 2 * N,
    needs="signal and noise are uncorrelated",
)
def reconstruction(error: Form, effort: Effort) -> Outcome:
    rng, n = effort.rng, effort.times(200_000)
    H = continuous(0.9, 0.02)
    signal, fresh = (rng.normal(size=n) + 1j * rng.normal(size=n) for _ in range(2))
    claimed = error(H, 2.0, 2.0)
    gaps = [
        abs(float((np.abs(signal - H * (signal + noise)) ** 2).mean()) / claimed - 1)
        for noise in (fresh, 1j * signal)
    ]
    return conditional(
        max(gaps) < 0.02,
        gaps[0] < 0.02,
        "mean of |s − H(s + n)|²",
        f"off by {percent(gaps[0])} if uncorrelated, by {percent(gaps[1])} if the noise is the signal a quarter turn later",
    )


@statement(
    "78",
    section="13.5",
    says="A signal of low frequencies, S = S₀e^(−|f|/f_s), in white noise, N = σ².",
    formula=r"S(f) = S_0 e^{-|f|/f_s}, \quad N(f) = \sigma^2",
    verdict=DEFINITION,
    method="total power of both",
    printed=lambda f, S0, fs: S0 * math.exp(-abs(f) / fs),
    note="The noise's total power over all f is infinite: see 71.",
)
def spectra(S: Form, effort: Effort) -> Outcome:
    from scipy.integrate import quad

    power = 2 * quad(lambda f: S(f, 100.0, 0.1), 0, np.inf)[0]
    return defined(
        math.isclose(power, 20.0, rel_tol=1e-6), "2S₀f_s = 20 for S₀ = 100, f_s = 0.1", number(power)
    )


def _J(a: float, s2: float, S0: float, fs: float) -> float:
    """(77) with (78) and (63), a = 1 − β."""
    u, w = _laguerre()
    k = 2 * math.pi * fs * u
    return float(2 * S0 * fs * (w * k**2 / (a**2 + k**2)).sum() + s2 * a / 2)


@functools.cache
def _laguerre() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of ∫₀^∞ g(u)e^{−u}du, fine enough for a ≪ f_s: logarithmic trapezoid."""
    x = np.linspace(-25, math.log(60), 6000)
    u = np.exp(x)
    return u, np.gradient(x) * u * np.exp(-u)


def best_filter(s2: float, S0: float, fs: float) -> float:
    """1 − β at the minimum of (77), 0 < 1 − β ≤ 1."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda x: _J(math.exp(x), s2, S0, fs), bounds=(-16, 0), method="bounded", options={"xatol": 1e-9}
    )
    ends = {math.exp(found.x): found.fun, 1.0: _J(1.0, s2, S0, fs)}
    return min(ends, key=lambda a: ends[a])


@statement(
    "79",
    section="13.5",
    says="The best β is σ²/(σ² + S₀√(πf_s)).",
    formula=r"\beta^* = \frac{\sigma^2}{\sigma^2 + S_0 \sqrt{\pi f_s}}",
    verdict=WRONG,
    method="numerical minimiser of (77) with (78)",
    printed=lambda s2, S0, fs: 1 - s2 / (s2 + S0 * math.sqrt(math.pi * fs)),
    corrected=r"1-\beta^*\approx\min\left(1,\ 4f_s\left(\frac{\pi^2S_0}{\sigma^2}\right)^{1/3}\right)\quad\text{for } S_0\gg\sigma^2;\ \beta^*\to 1\text{ for }S_0\leq\sigma^2",
    right=lambda s2, S0, fs: min(1.0, 4 * fs * (math.pi**2 * S0 / s2) ** (1 / 3)),
    states="(77), (78), (63)",
    note="√f_s has a unit, so β* would depend on how time is counted. Minimised numerically, 1 − β* is "
    "proportional to f_s. The corrected form is 1 % too large at S₀ = 10⁴σ², 18 % at 100σ², 87 % at 10σ².",
)
def best_cutoff(one_less: Form, effort: Effort) -> Outcome:
    cases = [(1.0, 1e4, 1e-4), (1.0, 1e4, 1e-3), (1.0, 1e5, 1e-3), (1.0, 100.0, 0.1)]
    off = [one_less(*case) / best_filter(*case) for case in cases]
    return truth(
        all(abs(x - 1) < 0.15 for x in off),
        ", ".join(number(best_filter(*case)) for case in cases) + " = 1 − β* in four settings",
        ", ".join(f"{number(x)} times it" for x in off),
    )


@statement(
    "13.5-noise",
    section="13.5",
    says="The more noise, the larger the best β.",
    verdict=HOLDS,
    method="numerical minimiser of (77) as σ² grows",
    printed=best_filter,
    states="(77), (78)",
)
def more_noise(minimiser: Form, effort: Effort) -> Outcome:
    values = [minimiser(s2, 1e4, 1e-3) for s2 in (0.1, 1.0, 10.0, 100.0, 1000.0)]
    return truth(
        bool(np.all(np.diff(values) < 0)),
        "1 − β* falls as σ² grows",
        ", ".join(number(v) for v in values) + " at σ² = 0.1 … 1000",
    )


def _example(claimed: float, s2: float) -> Outcome:
    by_formula = s2 / (s2 + 100 * math.sqrt(math.pi * 0.1))
    best = 1 - best_filter(s2, 100.0, 0.1)
    return truth(
        abs(claimed - by_formula) < 0.01,
        f"{number(by_formula)} by (79); {number(best)} by minimising (77)",
        f"{claimed:g}",
    )


@statement(
    "13.5-example-1",
    section="13.5",
    says="σ² = 1, S₀ = 100, f_s = 0.1 gives β* ≈ 0.97.",
    formula=r"\sigma^2=1,\ S_0=100,\ f_s=0.1\Rightarrow\beta^*\approx 0.97",
    verdict=WRONG,
    method="(79) in numbers",
    printed=0.97,
    corrected=r"\beta^*=0.0175 \text{ by (79); } 0 \text{ at the minimum of (77)}",
    right=0.0175,
    states="(79)",
)
def example_1(claimed: Form, effort: Effort) -> Outcome:
    return _example(claimed, 1.0)


@statement(
    "13.5-example-2",
    section="13.5",
    says="σ² = 10, S₀ = 100, f_s = 0.1 gives β* ≈ 0.99.",
    formula=r"\sigma^2=10,\ S_0=100,\ f_s=0.1\Rightarrow\beta^*\approx 0.99",
    verdict=WRONG,
    method="(79) in numbers",
    printed=0.99,
    corrected=r"\beta^*=0.151 \text{ by (79); } 0.01 \text{ at the minimum of (77)}",
    right=0.151,
    states="(79)",
)
def example_2(claimed: Form, effort: Effort) -> Outcome:
    return _example(claimed, 10.0)
