"""Post-hoc averages: any profile, rebuilt after training from snapshots of a few averages kept along it.

A snapshot is an average at some step: a known profile w_i over the steps, and its weights. A wanted profile w is
fitted as Σ x_i w_i by least squares, and the same x_i combine the snapshots' weights (Karras et al. 2024, §3.2).
The profiles here are the exact discrete ones of the averages that were kept, `every` and `start` included. Averages
updated every m steps hold spikes m steps apart, which no combination can spread again: profiles are compared by the
weight that falls into cells of m steps, over which the weights hardly move.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emabench.averaging.profiles import Profile

CELLS = 20_000  # profiles of longer trainings are compared in wider cells, to bound time and memory


@dataclass(frozen=True)
class Snapshot:
    """What an average was at one moment: its rule and the number of updates since training began."""

    profile: Profile
    step: int


@dataclass(frozen=True)
class Fit:
    """How the wanted profile is put together.

    coefficients: float64 [snapshots], sum 1; realised: float64 [T + 1], the profile that they make; residual:
    ‖realised − wanted‖ / ‖wanted‖ over the cells; moved: ½ Σ|realised − wanted| over the cells, the share of the
    weight that lies on other steps than wanted (0 exact, 1 nothing in common).
    """

    coefficients: np.ndarray
    realised: np.ndarray
    residual: float
    moved: float


def fit(snapshots: Sequence[Snapshot], wanted: Profile, T: int | None = None) -> Fit:
    """The combination of `snapshots` that comes nearest to `wanted` as it would be after T updates.

    T: the last snapshot's step if not given. The coefficients sum to 1, so that weights keep their scale.
    Raises ValueError without snapshots, or when all lie after T.
    """
    T = max((s.step for s in snapshots), default=0) if T is None else T
    usable = [i for i, s in enumerate(snapshots) if s.step <= T]
    if not usable:
        raise ValueError(f"no snapshot at or before step {T} to rebuild {wanted.to_dict()} from")
    target = wanted.weights(T)
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
    error = basis @ x - in_cells
    residual = float(np.linalg.norm(error) / np.linalg.norm(in_cells))
    return Fit(coefficients, realised, residual, float(np.abs(error).sum() / 2))


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
    return uniform + null @ z


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
    snapshots: Sequence[Snapshot], states: Iterable[Mapping[str, Any]], wanted: Profile, T: int | None = None
) -> tuple[dict[str, Any], Fit]:
    """(state_dict of the wanted average, how well it was fitted) from snapshots and their exported states."""
    made = fit(snapshots, wanted, T)
    return synthesise(made.coefficients, states), made
