"""The model that is averaged: which of its tensors are followed now, and the averages put into it for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from emabench.averaging import buffers as kinds
from emabench.averaging import following, tensors
from emabench.averaging.following import Rules, Selection, Structure
from emabench.averaging.swap import Swap, applied_to


class TrackedModel:
    """A model and what the rules select of it.

    selection: what is averaged; followed: its parameters and buffers, each tensor once; sharded: whether this process
    holds only its part of them; applied_name: the average that the model holds now, None outside `applied`.
    """

    def __init__(self, model: nn.Module, rules: Rules) -> None:
        self.model, self.rules = model, rules
        self.applied_name: str | None = None
        self.take(following.select(model, rules))

    def take(self, selection: Selection) -> None:
        """Follow what was selected of the model as it is now."""
        self.selection, self.followed = selection, selection.followed
        self._tensors = [f.tensor for f in self.followed]
        self.sharded = any(map(tensors.is_sharded, self._tensors))
        self._watch()

    def _watch(self) -> None:
        self._structure: Structure | None = Structure(self.model)
        self._swap: Swap | None = Swap(self.model, self.followed)
        derived = {
            id(e.tensor)
            for e in following.entries(self.model)
            if self.selection.policies.get(e.name) == "power_iteration"
        }
        self._spectral = [n for n in kinds.spectral_norms(self.model) if {id(n.u), id(n.v)} <= derived]

    def __getstate__(self) -> dict[str, Any]:
        """For copy.deepcopy and pickle: the model, without what is known of where its tensors lie."""
        return {**self.__dict__, "_structure": None, "_swap": None}

    def reselected(self) -> Selection | None:
        """What the rules select now, if the model may have changed since it was selected; else None."""
        if self.sharded:
            following.reshard(self.model)
        if self._structure is None:
            self._watch()
        elif self._structure.unchanged():
            return None
        return self.select()

    def select(self) -> Selection:
        """What the rules select of the model now."""
        return following.select(self.model, self.rules, known=self.selection.policies)

    def live(self) -> list[Tensor]:
        """The model's tensors in the order of `followed`; of sharded ones, this process's part."""
        for f in self.selection.frozen:
            if f.tensor.requires_grad:
                raise ValueError(
                    f"{f.name!r} was frozen when the averager was made with frozen='live' and is trained now: "
                    "make the averager after unfreezing, or with frozen='average'"
                )
        return [tensors.local(f.tensor) for f in self.followed] if self.sharded else self._tensors

    def by_id(self, values: Sequence[Tensor] | None) -> dict[int, Tensor]:
        """By `id` of the model's tensors, the values of an average (None: its own) and what follows from them."""
        return self._averaged(values) | self._derived(values)

    def _averaged(self, values: Sequence[Tensor] | None) -> dict[int, Tensor]:
        return {id(f.tensor): v for f, v in zip(self.followed, values or (), strict=values is not None)}

    def _derived(self, values: Sequence[Tensor] | None) -> dict[int, Tensor]:
        """By `id` of buffers, what follows from averaged weights: the vectors of spectral normalisation."""
        derived: dict[int, Tensor] = {}
        averaged = self._averaged(values) if self._spectral else {}
        for norm in self._spectral:
            weight = averaged.get(id(norm.weight))
            if weight is not None and not tensors.is_sharded(norm.weight):
                derived[id(norm.u)], derived[id(norm.v)] = kinds.power_iteration(norm, weight)
        return derived

    @contextlib.contextmanager
    def applied(self, name: str, values: Sequence[Tensor] | None) -> Iterator[None]:
        """Inside the block the model has these values; None: its own. See `Averager.applied`."""
        assert self._swap is not None
        self.applied_name = name
        try:
            with self._swap.applied(name, values, self._derived(values)):
                yield
        finally:
            self.applied_name = None

    def refuse_while_applied(self, what: str) -> None:
        """RuntimeError if the model holds an average, this averager's or another's."""
        applied = self.applied_name or applied_to(self._tensors)
        if applied is not None:
            raise RuntimeError(f"cannot {what} while average {applied!r} is applied: leave its block first")
