"""SGD on a noisy quadratic, where everything can be worked out: the article's theory, measured.

L(θ) = ½ Σ h_i θ_i², gradients h_i θ_i + σ ξ with ξ ~ N(0, 1). With plain SGD each coordinate is an AR(1) process
with ρ = 1 − η h, so in the stationary state (and with a long enough run)

    Var(θ) = η² σ² / (1 − ρ²),     Var(ema) / Var(θ) = (1 − β)/(1 + β) · (1 + βρ)/(1 − βρ).

Eq. (10) of the article has the first factor alone: it takes successive iterates for independent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from emabench.config import Count, NonNegative, Positive, Section
from emabench.tasks import base
from emabench.tasks.base import Direction


class Options(Section):
    """Curvatures spread evenly in log between 1/condition and 1, each with `replicas` independent coordinates."""

    name: Literal["quadratic"]
    curvatures: Count
    condition: Annotated[float, Field(ge=1)]
    replicas: Count  # they make the measured variance precise
    noise: NonNegative  # σ
    start: Positive  # every coordinate of θ_0


class Quadratic(nn.Module):
    """θ of shape (curvatures, replicas), and its excess loss."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.full((options.curvatures, options.replicas), options.start))
        spread = torch.linspace(0, 1, options.curvatures, dtype=torch.float64)
        self.register_buffer("h", (options.condition ** (spread - 1)).float()[:, None], persistent=False)
        self.h: Tensor

    def forward(self) -> Tensor:
        """Loss above the optimum, mean over replicas of the sum over curvatures (0-d)."""
        return 0.5 * (self.h * self.theta.square()).sum() / self.theta.shape[1]


class Task(base.Task):
    """Noisy SGD on a quadratic: excess loss, and the distance to the optimum."""

    metrics: ClassVar[Mapping[str, Direction]] = {
        "excess_loss": Direction.LOWER,
        "distance": Direction.LOWER,
    }

    def __init__(self, options: Options, context: base.Context) -> None:
        self.options, self.context = options, context
        self.model = Quadratic(options).to(context.device)
        self.optimizer = context.optimizer(self.model.parameters())

    def averaged(self) -> nn.Module:
        return self.model

    def train_step(self, batch: None, step: int) -> Mapping[str, Tensor | float]:
        theta = self.model.theta
        noise = torch.randn(theta.shape, generator=self.context.generator("noise", step)).to(theta.device)
        # Summed, not averaged over replicas: each coordinate then sees its own gradient h θ + σ ξ.
        loss = 0.5 * (self.model.h * theta.square()).sum() + self.options.noise * (noise * theta).sum()
        self.optimizer.step(loss, step)
        return {"loss": loss.detach() / theta.shape[1]}

    def evaluate(self) -> Mapping[str, float]:
        theta = self.model.theta
        return {
            "excess_loss": float(self.model()),
            "distance": float(theta.square().sum(0).mean().sqrt()),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
