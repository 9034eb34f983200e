"""NAME: a small network that separates two spirals.

A start to change into your own task. The contract, with shapes, units and the order of calls, is the docstring of
`emabench.tasks.base`; `emabench test task NAME` checks that it is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from emabench.config import Count, NonNegative, Section
from emabench.tasks import base
from emabench.tasks.base import Direction


class Options(Section):
    """The keys under `task:` in conf/task/NAME.yaml, typed: a wrong value is refused before anything is built."""

    name: Literal["NAME"]
    hidden: Count  # units of each layer
    noise: NonNegative  # standard deviation of the points about their spiral
    test_points: Count


def spirals(count: int, noise: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points in the plane, shape (count, 2), and which of two spirals each is of, shape (count,)."""
    labels = torch.randint(2, (count,), generator=generator)
    radius = torch.rand(count, generator=generator).sqrt() * 3
    angle = 2 * radius + torch.pi * labels
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return points + noise * torch.randn(points.shape, generator=generator), labels


class Task(base.Task):
    """Two spirals: accuracy and cross-entropy on points that training does not see."""

    # Every metric that `evaluate` returns, with the direction in which it is better; the first is the main one.
    metrics: ClassVar[Mapping[str, Direction]] = {"accuracy": Direction.HIGHER, "nll": Direction.LOWER}

    def __init__(self, options: Options, context: base.Context) -> None:
        self.options, self.context = options, context
        hidden = options.hidden
        # The initial weights are drawn here, under the run's seed.
        self.model = nn.Sequential(
            nn.Linear(2, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 2)
        ).to(context.device)
        # With the run's learning rate, schedule, clipping and precision (optimizer.*, schedule.*, clip.*).
        self.optimizer = context.optimizer(self.model.parameters())
        # The same test points for every seed of a run, so that differences between seeds are not those of the test.
        test = spirals(options.test_points, options.noise, torch.Generator().manual_seed(0))
        self.test_points, self.test_labels = context.to_device(test)

    def averaged(self) -> nn.Module:
        """The averages follow this module."""
        return self.model

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The data of a step. Every draw is from a generator of (seed, purpose, step): that is what makes a run resumable."""
        generator = self.context.generator("batch", step)
        return spirals(self.context.batch_size, self.options.noise, generator)

    def train_step(self, batch: tuple[Tensor, Tensor], step: int) -> Mapping[str, Tensor | float]:
        """One optimiser step; the averages are updated after it. What is returned is logged."""
        points, labels = batch
        loss = F.cross_entropy(self.model(points), labels)
        self.optimizer.step(loss, step)
        return {"loss": loss.detach()}

    def evaluate(self) -> Mapping[str, float]:
        """Measure the weights in place: the raw ones, then each average. Called in eval mode, without gradients."""
        logits = self.model(self.test_points).float()
        return {
            "accuracy": float((logits.argmax(1) == self.test_labels).double().mean()),
            "nll": float(F.cross_entropy(logits, self.test_labels)),
        }

    def state_dict(self) -> dict[str, Any]:
        """All that training depends on and that does not follow from (seed, step)."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
