"""§13.1 to §13.3: the EMA as a low-pass filter, against the exact response of the discrete one.

Frequencies f are in cycles per step; the discrete filter is (1 − β)/(1 − βe^{−2πif}), |f| ≤ 1/2.
"""

from __future__ import annotations

import cmath
import math

import numpy as np

from emabench.audit.statement import (
    APPROXIMATE,
    CONDITIONAL,
    DEFINITION,
    HOLDS,
    WRONG,
    Curves,
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


def exact(beta: float, f: float) -> complex:
    """The discrete EMA's response at f cycles a step."""
    return (1 - beta) / (1 - beta * cmath.exp(-2j * math.pi * f))


def continuous(beta: float, f: float) -> complex:
    """(63)."""
    return (1 - beta) / (1 - beta + 2j * math.pi * f)


def cutoff(beta: float) -> float:
    """(65)."""
    return (1 - beta) / (2 * math.pi)


@statement(
    "61",
    section="13.1",
    says="The continuous model: dθ/dt = (1 − β)(θ − θ_ema).",
    formula=r"\frac{d\boldsymbol{\theta}}{dt} = (1-\beta)\boldsymbol{\theta}(t) - (1-\beta)\boldsymbol{\theta}_{ema}(t)",
    verdict=WRONG,
    method="the equation solved for θ_ema, driven by slow and fast signals, against (1)",
    printed=lambda s, a: (a - s) / a,
    corrected=r"\frac{d\boldsymbol{\theta}_{ema}}{dt}=(1-\beta)\left[\boldsymbol{\theta}(t)-\boldsymbol{\theta}_{ema}(t)\right]",
    right=lambda s, a: a / (a + s),
    states="a model of the EMA (1)",
    note="The derivative is of the average. As printed the equation determines the weights, and amplifies fast changes.",
)
def continuous_model(response: Form, effort: Effort) -> Outcome:
    beta = 0.99
    rows = [(f, abs(response(2j * math.pi * f, 1 - beta)), abs(exact(beta, f))) for f in (1e-4, 1e-2, 5e-2)]
    return truth(
        all(abs(r / e - 1) < 0.05 for _, r, e in rows),
        "|H| of (1): " + ", ".join(f"{number(e)} at f = {f:g}" for f, _, e in rows),
        ", ".join(number(r) for _, r, _ in rows),
    )


@statement(
    "62",
    section="13.1",
    says="Its Fourier transform: 2πif·θ̃ = (1 − β)(θ̃ − θ̃_ema).",
    formula=r"2\pi if\tilde{\boldsymbol{\theta}}(f) = (1-\beta)[\tilde{\boldsymbol{\theta}}(f) - \tilde{\boldsymbol{\theta}}_{ema}(f)]",
    verdict=WRONG,
    method="sympy: solved for θ̃_ema/θ̃, against (63)",
    printed="theta",
    corrected=r"2\pi if\,\tilde{\boldsymbol{\theta}}_{ema}(f)=(1-\beta)\left[\tilde{\boldsymbol{\theta}}(f)-\tilde{\boldsymbol{\theta}}_{ema}(f)\right]",
    right="ema",
    states="(63) follows from it",
)
def transformed(left: Form, effort: Effort) -> Outcome:
    import sympy

    a, f, theta, average = sympy.symbols("a f theta ema")
    differentiated = {"theta": theta, "ema": average}[left]
    solved = (
        sympy.solve(2 * sympy.pi * sympy.I * f * differentiated - a * (theta - average), average)[0] / theta
    )
    gap = sympy.simplify(solved - a / (a + 2 * sympy.pi * sympy.I * f))
    return truth(gap == 0, "a/(a + 2πif), a = 1 − β", str(sympy.simplify(solved)))


def _against_discrete(response: Form, error_at: Form, beta: float = 0.9) -> tuple[float, float, float]:
    """Errors at f_c/10, f_c and at 1/2."""
    return tuple(error_at(response, beta, f) for f in (cutoff(beta) / 10, cutoff(beta), 0.5))


def _words(errors: tuple[float, float, float]) -> str:
    return f"{percent(errors[0])} at f_c/10, {percent(errors[1])} at f_c, {percent(errors[2])} at f = 1/2 (β = 0.9)"


@statement(
    "63",
    section="13.1",
    says="The transfer function is (1 − β)/(1 − β + 2πif).",
    formula=r"H(f) = \frac{\tilde{\boldsymbol{\theta}}_{ema}(f)}{\tilde{\boldsymbol{\theta}}(f)} = \frac{1-\beta}{1-\beta + 2\pi if}",
    verdict=APPROXIMATE,
    method="against the discrete filter's exact response",
    printed=continuous,
    corrected=r"H(f)=\frac{1-\beta}{1-\beta e^{-2\pi if}},\quad |f|\leq\tfrac12",
    right=exact,
    note="Exact for the continuous model. The error grows with f and with 1 − β; beyond f = 1/2 there is nothing.",
    figure=lambda: Curves(
        "Response of an EMA, β = 0.9",
        "f, cycles per step",
        "|H|",
        {
            "printed": [(10 ** (k / 10 - 3), abs(continuous(0.9, 10 ** (k / 10 - 3)))) for k in range(28)],
            "right": [(10 ** (k / 10 - 3), abs(exact(0.9, 10 ** (k / 10 - 3)))) for k in range(28)],
        },
        log_x=True,
        log_y=True,
    ),
)
def transfer(response: Form, effort: Effort) -> Outcome:
    errors = _against_discrete(response, lambda H, b, f: abs(H(b, f) / exact(b, f) - 1))
    return approximate(max(errors[:2]), 0.1, "the discrete filter's response", _words(errors))


@statement(
    "64",
    section="13.1",
    says="Its magnitude is (1 − β)/√((1 − β)² + 4π²f²).",
    formula=r"|H(f)| = \frac{1-\beta}{\sqrt{(1-\beta)^2 + 4\pi^2f^2}}",
    verdict=APPROXIMATE,
    method="against the discrete filter's exact magnitude",
    printed=lambda beta, f: (1 - beta) / math.sqrt((1 - beta) ** 2 + 4 * math.pi**2 * f * f),
    corrected=r"|H(f)|=\frac{1-\beta}{\sqrt{1-2\beta\cos 2\pi f+\beta^2}}",
    right=lambda beta, f: (1 - beta) / math.sqrt(1 - 2 * beta * math.cos(2 * math.pi * f) + beta * beta),
)
def magnitude(response: Form, effort: Effort) -> Outcome:
    errors = _against_discrete(response, lambda H, b, f: abs(H(b, f) / abs(exact(b, f)) - 1))
    return approximate(max(errors[:2]), 0.05, "the discrete filter's magnitude", _words(errors))


@statement(
    "65",
    section="13.1",
    says="Half of the power passes at f_c = (1 − β)/2π.",
    formula=r"f_c = \frac{1-\beta}{2\pi}",
    verdict=APPROXIMATE,
    method="against the discrete filter's half-power frequency",
    printed=cutoff,
    corrected=r"f_c=\frac{1}{2\pi}\arccos\left(1-\frac{(1-\beta)^2}{2\beta}\right),\quad\beta\geq 3-2\sqrt2",
    right=lambda beta: math.acos(1 - (1 - beta) ** 2 / (2 * beta)) / (2 * math.pi),
    note="5 % too low at β = 0.9, 30 % at 0.5; below β = 0.17 the discrete filter lets half of the power pass everywhere.",
)
def half_power(frequency: Form, effort: Effort) -> Outcome:
    from scipy.optimize import brentq

    true = {
        b: brentq(lambda f, b=b: abs(exact(b, f)) ** 2 - 0.5, 1e-9, 0.5, xtol=1e-14) for b in (0.5, 0.9, 0.99)
    }
    errors = {b: frequency(b) / f - 1 for b, f in true.items()}
    return approximate(
        max(abs(e) for b, e in errors.items() if b >= 0.9),
        0.06,
        ", ".join(f"{number(f)} at β = {b:g}" for b, f in true.items()),
        ", ".join(percent(e) for e in errors.values()) + " off",
    )


@statement(
    "66",
    section="13.1",
    says="Its phase is −arctan(2πf/(1 − β)).",
    formula=r"\phi(f) = -\arctan\left(\frac{2\pi f}{1-\beta}\right)",
    verdict=APPROXIMATE,
    method="against the discrete filter's exact phase",
    printed=lambda beta, f: -math.atan(2 * math.pi * f / (1 - beta)),
    corrected=r"\phi(f)=-\arctan\left(\frac{\beta\sin 2\pi f}{1-\beta\cos 2\pi f}\right)",
    right=lambda beta, f: -math.atan2(beta * math.sin(2 * math.pi * f), 1 - beta * math.cos(2 * math.pi * f)),
    note="At f = 1/2 the discrete filter has no phase shift at all; the printed form tends to a quarter of a turn.",
)
def phase(angle: Form, effort: Effort) -> Outcome:
    def error(A: Form, b: float, f: float) -> float:
        return abs(A(b, f) - cmath.phase(exact(b, f)))

    at = [error(angle, 0.9, f) for f in (cutoff(0.9) / 10, cutoff(0.9), 0.5)]
    return approximate(
        max(at[:2]),
        0.1,
        "the discrete filter's phase",
        ", ".join(
            f"off by {number(math.degrees(e))}° at {where}"
            for e, where in zip(at, ("f_c/10", "f_c", "f = 1/2"), strict=True)
        ),
    )


@statement(
    "67",
    section="13.2",
    says="Well below f_c nothing is lost: |H| ≈ 1.",
    formula=r"|H(f)| \approx 1, \quad \text{EMA attenuates almost nothing}",
    verdict=APPROXIMATE,
    method="the discrete filter's exact magnitude",
    printed=lambda share: 1.0,
    note="Lost: (f/f_c)²/2.",
)
def low_frequencies(response: Form, effort: Effort) -> Outcome:
    lost = {
        share: abs(response(share) / abs(exact(0.99, share * cutoff(0.99))) - 1) for share in (0.01, 0.1, 0.5)
    }
    return approximate(
        max(lost[0.01], lost[0.1]),
        0.01,
        "|H| of the discrete filter, β = 0.99",
        ", ".join(f"{percent(v)} lost at {s:g} f_c" for s, v in lost.items()),
    )


@statement(
    "68",
    section="13.2",
    says="Well above f_c, |H| falls as (1 − β)/(2πf).",
    formula=r"|H(f)| \approx \frac{(1-\beta)}{2\pi f}, \quad \text{falls as }1/f\text{}",
    verdict=APPROXIMATE,
    method="the discrete filter's exact magnitude",
    printed=lambda beta, f: (1 - beta) / (2 * math.pi * f),
    note="Up to a fifth of a cycle or so. At f = 1/2 the discrete filter still lets (1 − β)/(1 + β) pass, 1.57 times as much.",
)
def high_frequencies(response: Form, effort: Effort) -> Outcome:
    beta = 0.999
    errors = {f: response(beta, f) / abs(exact(beta, f)) - 1 for f in (10 * cutoff(beta), 0.1, 0.2, 0.5)}
    return approximate(
        max(abs(e) for f, e in errors.items() if f <= 0.2),
        0.08,
        "|H| of the discrete filter, β = 0.999",
        ", ".join(f"{percent(e)} at f = {number(f)}" for f, e in errors.items()),
    )


@statement(
    "69",
    section="13.2",
    says="|H(f_c)|/|H(0)| = 1/√2 ≈ 0.707.",
    formula=r"\frac{|H(f_c)|}{|H(0)|} = \frac{1}{\sqrt{2}} \approx 0.707",
    verdict=HOLDS,
    method="sympy, for (63) at (65)",
    printed=2.0**-0.5,
    states="(63), (65)",
    note="The discrete filter passes 0.726 at that f for β = 0.9.",
)
def at_the_cutoff(ratio: Form, effort: Effort) -> Outcome:
    import sympy

    a = sympy.Symbol("a", positive=True)
    f = a / (2 * sympy.pi)
    value = sympy.simplify(sympy.Abs(a / (a + 2 * sympy.pi * sympy.I * f)))
    return truth(
        abs(float(value) - ratio) < 1e-12 and round(ratio, 3) == 0.707,
        f"{value} = {float(value):.4f}",
        f"{ratio:.4f}",
    )


@statement(
    "70",
    section="13.3",
    says="The observed weights are the true ones plus white noise of variance σ².",
    formula=r"\boldsymbol{\theta}_t = \boldsymbol{\theta}^* + \boldsymbol{\delta}_t",
    verdict=DEFINITION,
    method="correlation of drawn noise",
    printed=lambda rng, n: 3.0 + rng.normal(size=n),
    note="SGD's iterates are not of this kind: their noise is correlated over 1/(ηh) steps.",
)
def signal_and_noise(draw: Form, effort: Effort) -> Outcome:
    theta = draw(effort.rng, effort.times(20000))
    noise = theta - theta.mean()
    rho = float((noise[1:] * noise[:-1]).mean() / noise.var())
    return defined(
        abs(rho) < 5 / math.sqrt(len(theta)),
        "uncorrelated from step to step",
        f"lag-1 correlation {rho:.4f} over {len(theta)} steps",
    )


@statement(
    "71",
    section="13.3",
    says="White noise of variance σ² has the flat spectrum σ².",
    formula=r"P_{\text{noise}}(f) = \sigma^2 \quad \text{(constant)}",
    verdict=CONDITIONAL,
    method="power over the band",
    printed=lambda f: 1.0,
    needs="time is discrete and |f| ≤ 1/2; over all frequencies, as (73) integrates, a flat spectrum has infinite power",
)
def flat_spectrum(spectrum: Form, effort: Effort) -> Outcome:
    def power(limit: float) -> float:
        f = np.linspace(-limit, limit, 10001)
        return float(np.trapezoid([spectrum(x) for x in f], f))

    return conditional(
        math.isclose(power(1e6), 1.0, rel_tol=1e-6),
        math.isclose(power(0.5), 1.0, rel_tol=1e-6),
        "total power σ²",
        f"{number(power(0.5))} σ² over |f| ≤ 1/2, {power(1e6):.0e} σ² up to |f| = 10⁶",
    )


@statement(
    "72",
    section="13.3",
    says="After the EMA the noise has the spectrum (1 − β)²/((1 − β)² + 4π²f²)·σ².",
    formula=r"P'_{\text{noise}}(f) = |H(f)|^2 \cdot P_{\text{noise}}(f) = \frac{(1-\beta)^2}{(1-\beta)^2 + 4\pi^2f^2}\sigma^2",
    verdict=APPROXIMATE,
    method="against the discrete filter's exact power; a periodogram as a second way",
    printed=lambda beta, f: (1 - beta) ** 2 / ((1 - beta) ** 2 + 4 * math.pi**2 * f * f),
    corrected=r"P'(f)=\frac{(1-\beta)^2}{1-2\beta\cos 2\pi f+\beta^2}\sigma^2",
    right=lambda beta, f: abs(exact(beta, f)) ** 2,
)
def filtered_noise(spectrum: Form, effort: Effort) -> Outcome:
    errors = _against_discrete(spectrum, lambda P, b, f: abs(P(b, f) / abs(exact(b, f)) ** 2 - 1))
    n, runs = 4096, effort.times(40)
    noise = effort.rng.normal(size=(runs, n))
    average = np.array(ema(noise.T, 0.9, np.zeros(runs))).T
    power = (np.abs(np.fft.rfft(average, axis=1)) ** 2).mean(0) / n
    nyquist = float(power[-40:].mean())
    return approximate(
        max(errors[:2]),
        0.06,
        "the discrete filter's power",
        _words(errors) + f"; periodogram near 1/2: {number(nyquist / abs(exact(0.9, 0.5)) ** 2)} of exact",
    )


@statement(
    "73",
    section="13.3",
    says="Integrated over all frequencies it is (1 − β)/(1 + β)·σ².",
    formula=r"\int_{-\infty}^{\infty} P'_{\text{noise}}(f)df = \frac{1-\beta}{1+\beta}\sigma^2",
    verdict=WRONG,
    method="sympy: the integral of (72)",
    printed=lambda a: a / (2 - a),
    corrected=r"\int_{-\infty}^{\infty}P'_{\text{noise}}(f)\,df=\frac{1-\beta}{2}\sigma^2,\qquad\int_{-1/2}^{1/2}\frac{(1-\beta)^2\sigma^2}{1-2\beta\cos 2\pi f+\beta^2}\,df=\frac{1-\beta}{1+\beta}\sigma^2",
    right=lambda a: a / 2,
    states="(72)",
    note="(1 − β)/(1 + β) is the integral of the discrete filter's power over |f| ≤ 1/2. The two agree as β → 1 only.",
)
def total_noise(value: Form, effort: Effort) -> Outcome:
    import sympy

    a, f = sympy.symbols("a f", positive=True)
    integral = sympy.simplify(2 * sympy.integrate(a**2 / (a**2 + 4 * sympy.pi**2 * f**2), (f, 0, sympy.oo)))
    f_grid = np.linspace(-0.5, 0.5, 200001)
    discrete = float(np.trapezoid(0.01 / np.abs(1 - 0.9 * np.exp(-2j * np.pi * f_grid)) ** 2, f_grid))
    return truth(
        sympy.simplify(integral - value(a)) == 0,
        f"{integral}, a = 1 − β",
        f"{value(a)}; at β = 0.9 {number(value(0.1), 4)} against {number(0.05, 4)} (the discrete filter: {number(discrete, 4)} = 1/19)",
    )


@statement(
    "73-exactly",
    section="13.3",
    says="That is exactly the factor of (10).",
    verdict=WRONG,
    method="the integral of (72) over (10)",
    printed=lambda beta: (1 - beta) / 2,
    corrected=r"\int_{-1/2}^{1/2}|H_{\text{discrete}}(f)|^2df=\frac{1-\beta}{1+\beta}",
    right=lambda beta: float(
        np.mean(np.abs((1 - beta) / (1 - beta * np.exp(-2j * np.pi * np.arange(4096) / 4096))) ** 2)
    ),
    states="(10), (72)",
)
def same_as_10(integral: Form, effort: Effort) -> Outcome:
    ratios = {b: integral(b) / ((1 - b) / (1 + b)) for b in (0.5, 0.9, 0.99)}
    return truth(
        all(abs(r - 1) < 1e-9 for r in ratios.values()),
        "(1 − β)/(1 + β)",
        ", ".join(f"{number(r)} of it at β = {b:g}" for b, r in ratios.items()),
    )
