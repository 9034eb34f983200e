"""Target networks: a gradient-free copy that follows a trained model (TD3, MoCo, Mean Teacher, BYOL)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from emabench.averaging.averager import Averager
from emabench.averaging.profiles import Profile
from emabench.averaging.tensors import Structure, followed, is_sharded, local

_NAME = "target"


class TargetNetwork:
    """A copy of `model` whose weights are the average that `profile` makes of the model's.

    target = TargetNetwork(critic, EMA(decay=0.995)); target.update() after each step; target(x) runs the copy.

    decay is what the target KEEPS (the article's τ in eq. 31 and 104); TD3's papers call 1 − decay τ.
    module: the copy; its parameters need no gradient. Gradients still flow to inputs that need them.
    buffers: "average" and "copy" as for `Averager`; "own" leaves the copy's buffers to its own forward passes
        (MoCo's and BYOL's batch norm).
    """

    def __init__(
        self,
        model: nn.Module,
        profile: Profile | Mapping[str, Any],
        *,
        buffers: str = "average",
        dtype: torch.dtype | None = None,
        check_finite: bool = True,
    ) -> None:
        if buffers not in ("average", "copy", "own"):
            raise ValueError(f"buffers={buffers!r}: give 'average', 'copy' or 'own'")
        self.own_buffers = buffers == "own"
        policy = "recompute" if self.own_buffers else buffers
        self.averager = Averager(
            model, {_NAME: profile}, buffers=policy, dtype=dtype, check_finite=check_finite
        )
        self.module = copy.deepcopy(model).requires_grad_(False)
        self._list_tensors()
        self._sync()
        self._share()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The copy's forward pass."""
        return self.module(*args, **kwargs)

    def update(self) -> None:
        """Follow the model; call it after each of its optimiser steps."""
        self.averager.update()
        self._sync()

    def _list_tensors(self) -> None:
        parameters, held = followed(self.module, "average")
        self._tensors: dict[str, Tensor] = {f.name: f.tensor for f in parameters + held}
        self._structure = Structure(self.module, parameters + held)

    def _share(self) -> None:
        """Let the copy's parameters lie in the average's own memory where the type allows: nothing to copy then."""
        [average] = self.averager.profiles.values()
        if average.is_its_set and average.started(0):
            for f, value in self.averager.state_of(_NAME):
                if not f.is_buffer and value.dtype == f.tensor.dtype and not is_sharded(f.tensor):
                    self._tensors[f.name].data = value

    @torch.no_grad()
    def _sync(self) -> None:
        if not self._structure.unchanged():  # the copy was converted and has other buffers now
            self._list_tensors()
        for f, value in self.averager.state_of(_NAME):
            own = local(self._tensors[f.name])
            if not (f.is_buffer and self.own_buffers) and own.data_ptr() != value.data_ptr():
                own.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """The average's state and the copy's own buffers: tensors and plain values only."""
        state = self.averager.state_dict()
        if self.own_buffers:
            state["buffers"] = dict(self.module.named_buffers())
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; ValueError for what does not fit."""
        self.averager.load_state_dict(state)
        for name, buffer in self.module.named_buffers():
            if self.own_buffers:
                if name not in state.get("buffers", {}):
                    raise ValueError(f"the target's state lacks buffer {name!r}")
                buffer.copy_(state["buffers"][name])
        self._sync()
