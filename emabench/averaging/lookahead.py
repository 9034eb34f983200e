"""Lookahead (Zhang et al. 2019): slow weights that the fast ones are reset to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from emabench.averaging._checks import check_count, check_number


class Lookahead(torch.optim.Optimizer):
    """Wraps an optimiser: every k of its steps, slow ← slow + α (fast − slow), then fast ← slow.

    The reset of the fast weights is what eq. (25) leaves out and the method needs: without it this would be an EMA
    of decay 1 − α every k steps. Learning-rate schedulers, GradScaler and state_dict work as with any optimiser.

    optimizer: the inner one; its parameter groups and state are shared. k: steps between synchronisations.
    alpha: share of the way to the fast weights, in (0, 1]. The slow weights are kept in float32 or wider.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, k: int = 5, alpha: float = 0.5) -> None:
        check_count("k", k, 1)
        check_number("alpha", alpha, 0.0, 1.0, "a share in (0, 1], like 0.5", low_open=True)
        super().__init__(optimizer.param_groups, dict(optimizer.defaults))
        self.optimizer, self.k, self.alpha = optimizer, k, alpha
        self.param_groups = optimizer.param_groups
        self.state = optimizer.state
        self.steps = 0
        self._slow = [self._copy(p) for p in self._fast()]

    def __getstate__(self) -> dict[str, Any]:
        """For copy.deepcopy and pickle; the base class leaves out what it does not know."""
        own = {key: self.__dict__[key] for key in ("optimizer", "k", "alpha", "steps", "_slow")}
        return {**super().__getstate__(), **own}

    @staticmethod
    def _copy(p: Tensor) -> Tensor:
        return p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)

    def _fast(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the inner optimiser, and after every k-th the synchronisation. Returns the inner result."""
        result = self.optimizer.step(closure)
        self.steps += 1
        if self.steps % self.k == 0:
            fast = self._fast()
            wide = [p.to(s.dtype) for p, s in zip(fast, self._slow, strict=True)]
            torch._foreach_lerp_(self._slow, wide, self.alpha)
            torch._foreach_copy_(fast, self._slow)
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the inner optimiser's."""
        self.optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the inner optimiser; their slow weights start as they are now."""
        if not hasattr(self, "optimizer"):  # called by the base class while it is being made
            super().add_param_group(param_group)
            return
        before = len(self._fast())
        self.optimizer.add_param_group(param_group)
        self._slow += [self._copy(p) for p in self._fast()[before:]]

    @contextlib.contextmanager
    def slow_applied(self) -> Iterator[None]:
        """Inside the block the parameters hold the slow weights, which evaluate better between synchronisations."""
        fast = self._fast()
        own = [p.data for p in fast]
        try:
            for p, s in zip(fast, self._slow, strict=True):
                p.data = s.to(p.dtype, copy=True)
            yield
        finally:
            for p, data in zip(fast, own, strict=True):
                p.data = data

    def state_dict(self) -> dict[str, Any]:
        """The inner optimiser's state, the slow weights and the count: tensors and plain values."""
        return {"optimizer": self.optimizer.state_dict(), "slow": list(self._slow), "steps": self.steps}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave. ValueError if the slow weights do not fit."""
        slow = state_dict["slow"]
        if [s.shape for s in slow] != [s.shape for s in self._slow]:
            raise ValueError(
                f"the state's {len(slow)} slow weights do not fit these {len(self._slow)} parameters"
            )
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state
        for own, saved in zip(self._slow, slow, strict=True):
            own.copy_(saved)
        self.steps = int(state_dict["steps"])
