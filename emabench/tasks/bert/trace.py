"""A fixed random subset of the weights, and the EMAs of it, is recorded over the last steps of the run.
From that come the variance of the weights about their trend, how much an average reduces it, and what the reduction
would be if the weights were AR(1) processes with the autocorrelation that they show:

    Var(ema) / Var(θ) = (1 − β)/(1 + β) · (1 + βρ)/(1 − βρ).

ρ is taken from the autocorrelation at a lag beyond the optimiser's own memory, ρ = r_lag^(1/lag): momentum makes
weights smoother from one step to the next than they are over ten. Windows that are no small part of the steps that
are recorded look better than they are: what is slower than those steps is taken for the trend.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from emabench.tasks import base
from emabench.tasks.bert.options import Variance


class Trace:
    """A fixed random subset of the weights, its EMAs and the loss, recorded over the last steps of a run.

    The EMAs are those of the run without their ramps and gaps: from zero, debiased, one update a step.
    """

    def __init__(self, model: nn.Module, options: Variance, context: base.Context) -> None:
        self.parameters = [*model.parameters()]
        decays = options.decays if isinstance(options.decays, list) else [options.decays or 0.0]
        self.steps = min(options.steps, context.steps)
        self.all_reduce_mean = context.all_reduce_mean
        self.first = context.steps - self.steps  # steps done before the first that is recorded
        total = sum(p.numel() for p in self.parameters)
        drawn = torch.randperm(total, generator=context.generator("trace"))[: options.weights]
        self.at, self.parts = drawn.sort().values, []
        begin = 0
        for p in self.parameters:
            inside = self.at[(self.at >= begin) & (self.at < begin + p.numel())] - begin
            self.parts.append(inside.to(p.device))
            begin += p.numel()
        device = context.device
        self.decays = torch.tensor(decays, dtype=torch.float64)
        self.lag = min(options.lag, self.steps // 4)
        self.sums = torch.zeros(len(decays), len(self.at), device=device)  # of the EMAs from zero
        self.weights = torch.zeros(
            self.steps, 1 + len(decays), len(self.at), device=device
        )  # raw, then the EMAs
        self.losses = torch.zeros(self.steps, device=device)

    def _in_place(self) -> Tensor:
        """The subset of the weights in place."""
        return torch.cat(
            [p.detach().flatten()[at] for p, at in zip(self.parameters, self.parts, strict=True)]
        )

    def add(self, done: int, loss: Tensor) -> None:
        """The weights after `done` steps, and the loss of the last one."""
        weights = self._in_place()
        alpha = (1 - self.decays).to(self.sums)
        self.sums.lerp_(weights.expand_as(self.sums), alpha[:, None].expand_as(self.sums))
        if done > self.first:
            row = done - 1 - self.first
            self.weights[row, 0] = weights
            self.weights[row, 1:] = self.sums / (1 - self.decays**done).to(self.sums)[:, None]
            self.losses[row] = self.all_reduce_mean(loss)

    def _variances(self) -> Tensor:
        """Variance about the linear trend, summed over the weights, of the raw ones and each EMA: float64 [1 + decays]."""
        return detrended(self.weights).square().sum((0, 2)) / (self.steps - 2)

    def _rho(self, lag: int) -> float:
        """The raw weights' autocorrelation from step to step, as that over `lag` steps says it."""
        raw = detrended(self.weights[:, 0])
        before, after = raw[:-lag], raw[lag:]
        r = (before * after).sum() / (before.square().sum() * after.square().sum()).sqrt()
        return float(r.clamp_min(0.0)) ** (1 / lag)

    def of_weights_in_place(self) -> dict[str, float]:
        """The metrics of the traced weights that are in place: the raw ones, or one of their EMAs.

        They are recognised by their values, to a tenth of what the raw weights vary by; NaN for any other average.
        """
        total = self._variances()
        distance = (self.weights[-1].double() - self._in_place().double()).square().sum(1)
        nearest = int(distance.argmin())
        if not distance[nearest] <= 0.01 * total[0]:
            return dict.fromkeys(("variance_reduction", "ar1_reduction", "relative_variance"), math.nan)
        beta = float(self.decays[nearest - 1]) if nearest else 0.0
        rho = self._rho(self.lag)
        law = (1 - beta) / (1 + beta) * (1 + beta * rho) / (1 - beta * rho)
        size = self.weights[:, nearest].double().mean(0).square().sum()
        return {
            "variance_reduction": float(total[0] / total[nearest]),
            "ar1_reduction": 1 / law,
            "relative_variance": float(total[nearest] / size),
        }

    def statistics(self) -> dict[str, float]:
        """ρ of the raw weights from lags of one step and of `lag` steps, and the standard deviation of the loss."""
        return {
            "rho_1": self._rho(1),
            f"rho_{self.lag}": self._rho(self.lag),
            "loss_sd": float((detrended(self.losses).square().sum() / (self.steps - 2)).sqrt()),
        }

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self.sums, "weights": self.weights, "losses": self.losses}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, value in self.state_dict().items():
            value.copy_(state[name])


def detrended(series: Tensor) -> Tensor:
    """A series [n, …] less its least-squares line, in float64."""
    x = series.double() - series.double().mean(0)
    t = torch.arange(len(series), dtype=torch.float64, device=series.device)
    t -= t.mean()
    slope = torch.tensordot(t, x, 1) / t.square().sum()
    return x - t.reshape(-1, *[1] * (x.ndim - 1)) * slope
