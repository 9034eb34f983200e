"""The arithmetic of an update: average += fresh · (θ − average), for K averages, in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Move:
    """How one average moves in this update; lists run along the followed tensors.

    fresh: share that the current weights take; lost: low-order bits kept by compensated summation, or None.
    """

    shadows: Sequence[Tensor]
    fresh: Sequence[float]
    lost: Sequence[Tensor] | None = None


def first_non_finite(names: Sequence[str], tensors: Sequence[Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity. Reads every tensor once (4 bytes a parameter)."""
    sums = torch.stack([t.sum().abs().float() for t in tensors if t.numel()] or [torch.zeros(())])
    if sums.sum().isfinite():  # a sum can overflow where all is finite, so only a finite one is proof
        return None
    for name, tensor in zip(names, tensors, strict=True):
        if not tensor.isfinite().all():
            return name
    return None


def move(live: Sequence[Tensor], moves: Sequence[Move]) -> None:
    """Move every average towards the live weights."""
    for m in moves:
        for i, (shadow, fresh) in enumerate(zip(m.shadows, m.fresh, strict=True)):
            theta = live[i].to(shadow.dtype)
            if fresh == 1.0:  # a first act: nothing of what was there before may leak in
                shadow.copy_(theta)
            elif m.lost is None:
                shadow.lerp_(theta, fresh)
            else:
                _compensated(shadow, theta, fresh, m.lost[i])


def _compensated(shadow: Tensor, theta: Tensor, fresh: float, lost: Tensor) -> None:
    """Kahan's summation of the lerp form (the article's §15.3 code, not its eq. 99)."""
    y = (theta - shadow).mul_(fresh).sub_(lost)
    new = shadow + y
    lost.copy_(new).sub_(shadow).sub_(y)
    shadow.copy_(new)
