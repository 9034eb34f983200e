"""The optimiser that tasks step with: one of torch's, with the run's schedule, clipping and loss scale."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from emabench.averaging.tensors import distributed_as
from emabench.config import Config
from emabench.training.distributed import full_tensor
from emabench.training.schedule import factor

Optim = TypeVar("Optim", bound=torch.optim.Optimizer)
WRAPPED = ("step", "zero_grad", "add_param_group", "state_dict", "load_state_dict")


class ScheduledOptimizer:
    """Implements `emabench.tasks.base.Optimizer` over one of torch's."""

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        config: Config,
        device: torch.device,
    ) -> None:
        self.config, self.device_type = config, device.type
        self.inner = _build(params, config, device)
        self.params = [p for group in self.inner.param_groups for p in group["params"]]
        self.base_lrs = [group["lr"] for group in self.inner.param_groups]
        # fp16 gradients underflow without a scale; bf16 and fp32 need none.
        self.scaler = torch.amp.GradScaler(device.type) if config.precision == "fp16" else None
        self.skipped = False  # whether the last step was: its loss scale was too large, and no weight changed

    def step(self, loss: Tensor, step: int) -> Tensor | None:
        """One optimiser step on `loss`; see `tasks.base.Optimizer.step`."""
        self.inner.zero_grad(set_to_none=True)
        with torch.autocast(self.device_type, enabled=False):  # the trainer's is for forward passes
            (self.scaler.scale(loss) if self.scaler else loss).backward()
        norm = None
        if self.config.clip.max_norm is not None:
            if self.scaler:
                self.scaler.unscale_(self.inner)
            norm = nn.utils.clip_grad_norm_(self.params, self.config.clip.max_norm).detach()
            norm = full_tensor(norm)
            if self.scaler:
                # Where the scale was too large the step is skipped and its norm means nothing: logged as 0.
                # A gradient that is not finite at a scale below 1 ends the run, as such a loss does.
                scale = self.scaler.scale(torch.ones_like(norm))
                norm = torch.where(norm.isfinite() | (scale < 1), norm, 0.0)
        multiplier = factor(self.config.schedule, step, self.config.steps)
        for group, base_lr in zip(self.inner.param_groups, self.base_lrs, strict=True):
            group["lr"] = base_lr * multiplier
        if self.scaler:
            before = self.scaler.get_scale()
            self.scaler.step(self.inner)
            self.scaler.update()
            self.skipped = self.scaler.get_scale() < before
        else:
            self.inner.step()
        return norm

    def state_dict(self) -> dict[str, Any]:
        state = {"optimizer": self.inner.state_dict()}
        return state | ({"scaler": self.scaler.state_dict()} if self.scaler else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.inner.load_state_dict(self._shard(state["optimizer"]))
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])

    def _shard(self, state: dict[str, Any]) -> dict[str, Any]:
        """A full state with this process's shards, where the parameters are sharded."""
        states = [
            {
                key: distributed_as(p, value) if isinstance(value, Tensor) else value
                for key, value in state["state"].get(index, {}).items()
            }
            for index, p in enumerate(self.params)
        ]
        return {**state, "state": {index: values for index, values in enumerate(states) if values}}


def _build(params: Any, config: Config, device: torch.device) -> torch.optim.Optimizer:
    settings = config.optimizer
    fused = True if device.type == "cuda" else None
    if settings.name == "sgd":
        return _eager(torch.optim.SGD)(
            params,
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov and settings.momentum > 0,
            weight_decay=settings.weight_decay,
            fused=fused,
        )
    adam = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return _eager(adam)(
        params,
        lr=settings.lr,
        betas=(settings.betas[0], settings.betas[1]),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=fused,
    )


def _eager(kind: type[Optim]) -> type[Optim]:
    """The same optimiser without the wrappers that keep its methods out of compiled graphs.

    Their first call imports torch._dynamo, which takes longer than importing torch. Only modules are compiled here
    (`compile=true`), never a step of the optimiser.
    """
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in WRAPPED}
    plain["step"] = torch.no_grad()(
        plain["step"]
    )  # what the wrapper of `step` does, with differentiable=False
    return type(kind.__name__, (kind,), plain)
