"""Post-hoc averages: any profile, rebuilt after training from snapshots of a few averages kept along it.

A snapshot is an average at some step: a known profile w_i over the steps, and its weights. A requested profile w is
fitted as Σ x_i w_i by least squares, and the same x_i combine the snapshots' weights (Karras et al. 2024, §3.2).
The profiles here are the exact discrete ones of the averages that were kept, `every` and `start` included. Averages
updated every m steps hold spikes m steps from each other, which no combination can spread again, so that they are fitted by the
weight that falls into cells of m steps. How far the result is from the requested average depends on how much the weights
move within a cell, which snapshots do not tell: `Fit` states it step by step, for a smoothness that the caller names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emabench.averaging._checks import check_number
from emabench.averaging.profiles import Profile

CELLS = 20_000  # profiles of longer trainings are compared in wider cells, to bound time and memory


@dataclass(frozen=True)
class Snapshot:
    """What an average was at one moment: its rule and the number of updates since training began."""

    profile: Profile
    step: int


class PoorFit(ValueError):
    """The requested average cannot be put together from these snapshots to the tolerance given."""


@dataclass(frozen=True)
class Fit:
    """How the requested profile is put together, and what that makes of it.

    coefficients: float64 [snapshots], sum 1; realised and requested: float64 [T + 1], the profile that they make and the
    one that was requested. Their difference δ sums to 0, and the error of the result is Σ δ_t θ_t.
    """

    coefficients: np.ndarray
    realised: np.ndarray
    requested: np.ndarray

    @property
    def moved(self) -> float:
        """½ Σ|δ_t|: the share of the weight that lies on other steps than requested (0 exact, 1 nothing in common)."""
        return float(np.abs(self.realised - self.requested).sum() / 2)

    @property
    def residual(self) -> float:
        """‖δ‖ / ‖requested‖: the relative error if the weights of different steps were independent."""
        return self.error(1.0)

    @property
    def shift(self) -> float:
        """Σ_t |Σ_{s ≤ t} δ_s|: by how many steps the weight is out of place (the earth mover's distance).

        If no step of training is longer than v, the result is within v · shift of the requested average (summation by
        parts), whatever else the weights do.
        """
        return float(np.abs(np.cumsum(self.realised - self.requested)).sum())

    def error(self, correlation_time: float) -> float:
        """The expected relative error if the weights fluctuate with this correlation time, in steps (at least 1).

        √(δᵀRδ / wᵀRw) with R_st = ρ^|s − t| and ρ = 1 − 1/correlation_time: the root mean square of the error over
        that of the requested average, for weights that are a stationary AR(1) process about any mean. At a constant
        learning rate η a direction of curvature h has the correlation time 1/(ηh); the shortest one counts.
        """
        check_number(
            "correlation_time",
            correlation_time,
            1.0,
            math.inf,
            "a number of steps, at least 1",
            high_open=True,
        )
        rho = 1.0 - 1.0 / correlation_time
        return math.sqrt(_variance(self.realised - self.requested, rho) / _variance(self.requested, rho))

    def require(self, tolerance: float, correlation_time: float = 1.0) -> None:
        """Raise PoorFit, with what would help, if the expected relative error is above `tolerance`."""
        error = self.error(correlation_time)
        if error > tolerance:
            raise PoorFit(
                f"the snapshots make the requested average with an expected relative error of {error:.2g} for weights that "
                f"fluctuate with a correlation time of {correlation_time:g} steps, above {tolerance:g}: take snapshots more "
                "often, update the kept averages at every step, or state a longer correlation time if that is known"
            )


def _variance(profile: np.ndarray, rho: float) -> float:
    """Σ_st p_s p_t ρ^|s − t|."""
    before = total = 0.0
    for p in profile.tolist():
        total += p * (p + 2.0 * before)
        before = rho * (before + p)
    return max(total, 0.0)


def fit(snapshots: Sequence[Snapshot], profile: Profile, T: int | None = None) -> Fit:
    """The combination of `snapshots` that comes nearest to `profile` as it would be after T updates, cell by cell.

    T: the last snapshot's step if not given. The coefficients sum to 1, so that weights keep their scale.
    Raises ValueError without snapshots, or when all lie after T.
    """
    T = max((s.step for s in snapshots), default=0) if T is None else T
    usable = [i for i, s in enumerate(snapshots) if s.step <= T]
    if not usable:
        raise ValueError(f"no snapshot at or before step {T} to rebuild {profile.to_dict()} from")
    target = profile.weights(T)
    coarsest = max((snapshots[i].profile for i in usable), key=lambda profile: profile.every)
    width = coarsest.every * max(1, T // (CELLS * coarsest.every))
    cells = _cells(T, width, int(coarsest.start))
    in_cells = np.add.reduceat(target, cells)
    basis = np.column_stack([np.add.reduceat(_profile(snapshots[i], T), cells) for i in usable])
    x = _least_squares(basis, in_cells)
    coefficients, realised = np.zeros(len(snapshots)), np.zeros(T + 1)
    coefficients[usable] = x
    for i in usable:
        realised += coefficients[i] * _profile(snapshots[i], T)
    return Fit(coefficients, realised, target)


def _profile(snapshot: Snapshot, T: int) -> np.ndarray:
    return np.pad(snapshot.profile.weights(snapshot.step), (0, T - snapshot.step))


def _cells(T: int, width: int, start: int) -> np.ndarray:
    """First entry of each cell of 0 … T: step 0 alone, then cells that end at start, start ± width, …"""
    return np.unique(np.concatenate([[0, min(1, T)], np.arange(start % width + 1, T + 1, width)])).astype(int)


def _least_squares(basis: np.ndarray, target: np.ndarray) -> np.ndarray:
    """min ‖basis·x − target‖ subject to Σx = 1: x = x₀ + N·z, with x₀ uniform and N spanning the sum-zero vectors.

    Directions below 1e-9 of the largest singular value are left out: they would only amplify rounding in the
    snapshots' float32 weights.
    """
    n = basis.shape[1]
    uniform = np.full(n, 1.0 / n)
    if n == 1:
        return uniform
    null = np.linalg.qr(np.column_stack([np.ones(n), np.eye(n)[:, 1:]]))[0][:, 1:]
    z = np.linalg.lstsq(basis @ null, target - basis @ uniform, rcond=1e-9)[0]
    solution: np.ndarray = uniform + null @ z
    return solution


def synthesise(
    coefficients: Sequence[float] | np.ndarray, states: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """Σ x_i · state_i over exported state_dicts, in float64, returned in their own types.

    states: one per coefficient, read one at a time (a generator that loads files keeps memory at two models); those
    with a coefficient of 0 are not combined. What is not floating point comes from the last state read.
    ValueError if the number of states differs or they do not hold the same names.
    """
    total: dict[str, Tensor] = {}
    last: Mapping[str, Any] = {}
    count = 0
    for count, state in enumerate(states, 1):
        if last and state.keys() != last.keys():
            raise ValueError(f"states differ in {sorted(state.keys() ^ last.keys())[:3]}")
        last = state
        x = float(coefficients[count - 1]) if count <= len(coefficients) else 0.0
        for key, value in state.items():
            if x and isinstance(value, Tensor) and value.is_floating_point():
                total[key] = total[key].add_(value, alpha=x) if key in total else value.double() * x
    if count != len(coefficients) or not total:
        raise ValueError(f"{len(coefficients)} coefficients for {count} states: give one state for each")
    return {key: total[key].to(value.dtype) if key in total else value for key, value in last.items()}


@torch.no_grad()
def rebuild(
    snapshots: Sequence[Snapshot],
    states: Iterable[Mapping[str, Any]],
    profile: Profile,
    T: int | None = None,
    *,
    tolerance: float | None = None,
    correlation_time: float = 1.0,
) -> tuple[dict[str, Any], Fit]:
    """(state_dict of the requested average, how well it was fitted) from snapshots and their exported states.

    tolerance: PoorFit is raised, before a state is read, if `Fit.error(correlation_time)` is above it.
    """
    fitted = fit(snapshots, profile, T)
    if tolerance is not None:
        fitted.require(tolerance, correlation_time)
    return synthesise(fitted.coefficients, states), fitted
