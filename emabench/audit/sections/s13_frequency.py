"""§13: the EMA as a low-pass filter, against the exact response of the discrete one.

Frequencies f are in cycles per step; the discrete filter is (1 − β)/(1 − βe^{−2πif}), |f| ≤ 1/2.
"""

from __future__ import annotations

import cmath
import functools
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
    note="√f_s has a unit, so β* would depend on how time is counted. Minimised numerically, 1 − β* is proportional to f_s.",
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
