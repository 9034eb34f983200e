"""What several checks share: exact moments of SGD with an EMA on a quadratic, weights of an EMA, searches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emabench.audit.statement import Outcome, reported

if TYPE_CHECKING:
    import numpy as np


def ema(values: Iterable[Any], beta: float | Callable[[int], float], start: Any) -> list[Any]:
    """The EMA of `values` by eq. (1), one entry a step; `beta` may depend on the step (0, 1, …)."""
    decay = beta if callable(beta) else lambda _: beta
    out, now = [], start
    for step, value in enumerate(values):
        b = decay(step)
        now = b * now + (1 - b) * value
        out.append(now)
    return out


def ema_weights(decays: Sequence[float]) -> list[float]:
    """The weight of the start and of each step after len(decays) steps of eq. (1); they sum to one."""
    kept, weights = 1.0, []
    for beta in reversed(decays):
        weights.append((1 - beta) * kept)
        kept *= beta
    return [kept, *reversed(weights)]


@dataclass(frozen=True)
class Quadratic:
    """SGD θ ← θ − η(hθ + ξ) on L = hθ²/2 in one dimension, Var ξ = σ², with an EMA that starts at θ_0.

    Everything is exact: both weights are linear in θ_0 and in the noise of each step.
    """

    h: float = 1.0
    eta: float = 0.1
    sigma2: float = 1.0
    beta: float = 0.9
    start: float = 0.0  # θ_0 − θ*

    @property
    def rho(self) -> float:
        """What a step leaves of the distance to the optimum: 1 − ηh, the lag-1 correlation of the iterates."""
        return 1 - self.eta * self.h

    @property
    def iterate_variance(self) -> float:
        """Stationary variance of the iterates: η²σ²/(1 − ρ²)."""
        return self.eta**2 * self.sigma2 / (1 - self.rho**2)

    @property
    def factor(self) -> float:
        """Stationary variance of the EMA over that of the iterates."""
        return variance_factor(self.beta, self.rho)

    def ema_mean(self, T: int) -> float:
        """Mean of the EMA after T steps, less θ*."""
        b, r = self.beta, self.rho
        if abs(r - b) < 1e-12:
            return self.start * (b**T + (1 - b) * T * b**T)
        return float(self.start * (b**T + (1 - b) * r * (r**T - b**T) / (r - b)))

    def ema_variance(self, T: int | None = None) -> float:
        """Variance of the EMA after T steps from a fixed start; stationary with T left out."""
        b, r = self.beta, self.rho
        if (r - b) ** 2 < 1e-5 * (1 - max(b, r)):  # the closed form cancels there
            return self._ema_variance_summed(T)
        scale = self.eta**2 * self.sigma2 * (1 - b) ** 2 / (r - b) ** 2
        return scale * (_geometric(r * r, T) - 2 * _geometric(r * b, T) + _geometric(b * b, T))

    def _ema_variance_summed(self, T: int | None) -> float:
        """The same as a sum over the noise of each past step."""
        import numpy as np

        low, high = sorted((self.beta, self.rho))
        steps = math.ceil(40 / (1 - high))
        k = np.arange(steps if T is None else min(T, steps))
        response = (1 - self.beta) * high**k * np.cumsum((low / high) ** k)
        return float(self.eta**2 * self.sigma2 * (response**2).sum())

    def iterate_excess(self, T: int) -> float:
        """E[L(θ_T)] − L*."""
        variance = self.eta**2 * self.sigma2 * (1 - self.rho ** (2 * T)) / (1 - self.rho**2)
        return self.h / 2 * (self.start**2 * self.rho ** (2 * T) + variance)

    def ema_excess(self, T: int | None = None) -> float:
        """E[L(EMA)] − L* after T steps; in the stationary state with T left out."""
        mean = 0.0 if T is None else self.ema_mean(T)
        return self.h / 2 * (mean**2 + self.ema_variance(T))


def variance_factor(beta: float, rho: float) -> float:
    """Var(EMA)/Var(iterates) of an AR(1) process: (1 − β)/(1 + β) · (1 + βρ)/(1 − βρ)."""
    return (1 - beta) / (1 + beta) * (1 + beta * rho) / (1 - beta * rho)


def _geometric(q: float, T: int | None) -> float:
    """q + q² + … + q^T."""
    return q / (1 - q) if T is None else q * (1 - q**T) / (1 - q)


def stationary_covariance(A: np.ndarray, N: np.ndarray) -> np.ndarray:
    """The covariance C of x ← A x + noise of covariance N: C = A C Aᵀ + N."""
    from scipy.linalg import solve_discrete_lyapunov

    return solve_discrete_lyapunov(A, N)


def diffusion_covariance(drift: np.ndarray, D: np.ndarray) -> np.ndarray:
    """The covariance of dx = −drift·x dt + noise of covariance D dt: drift·C + C·driftᵀ = D."""
    from scipy.linalg import solve_continuous_lyapunov

    return solve_continuous_lyapunov(drift, D)


@dataclass(frozen=True)
class Search:
    """What a search for a counter-example came to."""

    tried: int
    worst: float  # the largest left side over right side: above 1 is a violation
    where: str

    @property
    def clean(self) -> bool:
        """Whether no counter-example was found."""
        return self.worst <= 1 + 1e-9


def search(cases: Iterable[tuple[str, float, float]]) -> Search:
    """Look for the case in which `left ≤ right` is broken most; cases are (description, left, right)."""
    tried, worst, where = 0, 0.0, "nowhere"
    for name, left, right in cases:
        tried += 1
        ratio = left / right if right > 0 else (float("inf") if left > 1e-12 else 0.0)
        if ratio > worst:
            worst, where = ratio, name
    return Search(tried, worst, where)


def number(value: float, digits: int = 3) -> str:
    """A number in a sentence."""
    rounded = float(f"{value:.{digits}g}")
    whole = 10 ** (digits - 1) <= abs(rounded) < 1e7
    return (f"{value:.0f}" if whole else f"{value:.{digits}g}").replace("-", "−")


def percent(value: float, digits: int = 2) -> str:
    """A share as a percentage in a sentence."""
    return f"{number(100 * value, digits)} %"


def reported_rows(table: str) -> dict[str, dict[str, float]]:
    """The article's numbers as conf/table/NAME.yaml carries them: by row, by metric."""
    import yaml

    from emabench.paths import conf_dir

    spec = yaml.safe_load((conf_dir() / "table" / f"{table}.yaml").read_text(encoding="utf-8"))
    return {key: row["reported"] for key, row in spec["rows"].items() if row.get("reported")}


def same_as_table(printed: Mapping[str, Mapping[str, float]], table: str) -> Outcome:
    """Are the article's numbers those that the table judges?"""
    carried = reported_rows(table)
    differing = [row for row in {**carried, **printed} if carried.get(row) != printed.get(row)]
    return reported(
        not differing,
        f"the numbers that conf/table/{table}.yaml judges",
        f"{len(printed)} rows, {'all the same' if not differing else 'other numbers in ' + ', '.join(differing)}",
    )
