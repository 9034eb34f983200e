"""A small model with everything that averaging must cope with, and an oracle that sums weights explicitly."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class Small(nn.Module):
    """Linear layers with one weight tied, a batch norm, a frozen parameter and an integer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.first.weight
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(self.norm(self.first(x))).sum(-1) + self.frozen.sum()


class History:
    """Keeps float64 copies of a model's state after every step, and sums them with given weights."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.states = model, []
        self.record()

    def record(self) -> None:
        self.states.append({k: v.detach().clone() for k, v in self.model.state_dict().items()})

    def average(self, weights: np.ndarray) -> dict[str, Tensor]:
        out = {}
        for key, last in self.states[-1].items():
            if last.is_floating_point():
                out[key] = sum(w * s[key].double() for w, s in zip(weights, self.states, strict=True) if w)
            else:
                out[key] = last
        return out


def walk(model: nn.Module, seed: int) -> None:
    """One step of a random walk of all floating-point state; counters count."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name != "frozen":
                p.add_(torch.randn(p.shape, generator=g).to(p.dtype))
        for b in model.buffers():
            if b.is_floating_point():
                b.add_(torch.rand(b.shape, generator=g).to(b.dtype))
            else:
                b.add_(1)


def assert_close(
    got: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-5, atol: float = 1e-5
) -> None:
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(
            got[key].double(), value.double(), rtol=rtol, atol=atol, msg=lambda m, k=key: f"{k}: {m}"
        )
