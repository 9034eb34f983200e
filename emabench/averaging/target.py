"""Target networks: a gradient-free copy that follows a trained model (TD3, MoCo, Mean Teacher, BYOL)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from emabench.averaging._checks import check_choice
from emabench.averaging.averager import Averager
from emabench.averaging.copying import Settings, copy_model
from emabench.averaging.following import Structure, entries
from emabench.averaging.profiles import Profile
from emabench.averaging.tensors import is_sharded, local

_NAME = "target"


class TargetNetwork:
    """A copy of `model` whose weights are the average that `profile` makes of the model's.

    target = TargetNetwork(critic, EMA(decay=0.995)); target.update() after each step; target(x) runs the copy.

    decay is what the target KEEPS (the article's τ in eq. 31 and 104); TD3's papers call 1 − decay τ.

    Args:
        model: the model that is trained. Numbers, strings and flags in its modules' attributes (a temperature, a
            drop rate) are taken over at each update.
        profile: the rule of the average.
        buffers: "average" and "copy" as for `Averager`; "own" leaves the copy's buffers to its own forward passes
            (MoCo's and BYOL's batch norm).
        mode: "own" leaves the copy in the mode that it is set to, the model's at first; "eval" keeps it in eval mode;
            "follow" gives each of its modules the mode of the model's at every call.
        dtype: as for `Averager`.
        check_finite: as for `Averager`.

    Attributes:
        module: the copy; its parameters need no gradient. Gradients still flow to inputs that need them.
        averager: what carries the average.
    """

    def __init__(
        self,
        model: nn.Module,
        profile: Profile | Mapping[str, Any],
        *,
        buffers: str = "average",
        mode: str = "own",
        dtype: torch.dtype | None = None,
        check_finite: bool = True,
    ) -> None:
        if buffers not in ("average", "copy", "own"):
            raise ValueError(f"buffers={buffers!r}: give 'average', 'copy' or 'own'")
        check_choice("mode", mode, ("own", "eval", "follow"))
        self.own_buffers, self.mode = buffers == "own", mode
        policy = "recompute" if self.own_buffers else buffers
        self.averager = Averager(
            model, {_NAME: profile}, buffers=policy, dtype=dtype, check_finite=check_finite
        )
        self.module = copy_model(model).requires_grad_(False)
        self._settings = Settings(model, self.module)
        self._list_tensors()
        self._sync()
        self._share()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The copy's forward pass."""
        if self.mode == "eval" and self.module.training:
            self.module.eval()
        elif self.mode == "follow":
            for source, target in zip(self.averager.model.modules(), self.module.modules(), strict=True):
                target.training = source.training
        return self.module(*args, **kwargs)

    def update(self, step: int | None = None) -> None:
        """Follow the model; call it after each of its optimiser steps. `step` as for `Averager.update`."""
        self.averager.update(step)
        self._settings.take_over()
        self._sync()

    def _list_tensors(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        for entry in entries(self.module):
            self._tensors.setdefault(entry.name, entry.tensor)
        self._structure = Structure(self.module)

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
