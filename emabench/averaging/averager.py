"""The engine: K averages of one model's weights, carried along its training."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from emabench.averaging import kernels, tensors
from emabench.averaging._checks import check_choice, nearest
from emabench.averaging.profiles import EMA, Profile, from_dict
from emabench.averaging.swap import swapped

RAW = "raw"


@dataclass
class Average:
    """One average: its rule, how far it has come, and its tensors (in the order of `Averager.followed`)."""

    profile: Profile
    shadows: list[Tensor]
    lost: list[Tensor] | None
    acts: int = 0
    log_kept: float = 0.0


class Averager:
    """Carries averages of `model`'s weights.

    Args:
        model: what is averaged; may be compiled or wrapped in DDP. Make the averager after moving the model.
        profiles: by name, the rule of each average, or the mapping that describes it. "raw" is not a name: it
            means the current weights.
        buffers: "average" averages floating-point buffers as weights and copies integers; "copy" takes the
            model's current ones; "recompute" does as well, and says that `recalibrate` is to be called inside
            `applied`.
        frozen: "average" follows parameters that need no gradient too; "live" leaves those out, saves their
            memory, and refuses to go on when one of them is unfrozen.
        dtype: type of the averages; float32 if not given, or the parameter's own where that is wider.
        compensated: Kahan summation for all averages or the named ones, at twice their memory; for decays above
            .99999.
        check_finite: refuse an update from weights that are NaN or infinite, leaving all averages as they were.
            Reads every parameter once more: a third of the cost of an update with one average.

    An average is the current weights until it begins (see `profiles`).
    """

    def __init__(
        self,
        model: nn.Module,
        profiles: Mapping[str, Profile | Mapping[str, Any]],
        *,
        buffers: str = "average",
        frozen: str = "average",
        dtype: torch.dtype | None = None,
        compensated: bool | Collection[str] = False,
        check_finite: bool = True,
    ) -> None:
        check_choice("buffers", buffers, ("average", "copy", "recompute"))
        check_choice("frozen", frozen, ("average", "live"))
        if RAW in profiles:
            raise ValueError(f"average {RAW!r}: that name means the current weights; choose another")
        self.model, self.buffers, self.frozen, self.check_finite = model, buffers, frozen, check_finite
        self.updates = 0
        self.applied_name: str | None = None
        self._parameters, self._buffers = tensors.followed(model, frozen)
        averaged_buffers = [
            b for b in self._buffers if buffers == "average" and tensors.averageable(b.tensor)
        ]
        self.followed = self._parameters + averaged_buffers
        self._compensated = set(profiles if compensated is True else compensated or ())
        for name in self._compensated - set(profiles):
            raise ValueError(f"compensated={name!r} is none of the averages{nearest(name, profiles)}")
        self._averages: dict[str, Average] = {}
        for name, rule in profiles.items():
            profile = from_dict(rule)
            profile._require_bound()
            shadows = [self._new_shadow(f.tensor, dtype) for f in self.followed]
            lost = [torch.zeros_like(s) for s in shadows] if name in self._compensated else None
            self._averages[name] = Average(profile, shadows, lost)
            if isinstance(profile, EMA) and profile.beta > 0.99999 and lost is None:
                warnings.warn(
                    f"average {name!r}: above decay .99999 float32 loses steps; pass compensated=True"
                )
        self._begin()

    @staticmethod
    def _new_shadow(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        return torch.empty_like(tensors.local(tensor.detach()), dtype=tensors.shadow_dtype(tensor, dtype))

    @property
    def names(self) -> tuple[str, ...]:
        """The averages, in the order given."""
        return tuple(self._averages)

    @property
    def profiles(self) -> dict[str, Profile]:
        """The rule of each average."""
        return {name: average.profile for name, average in self._averages.items()}

    # -- training ---------------------------------------------------------------------------------------------
    @torch.no_grad()
    def update(self) -> None:
        """Let every average see the current weights; call it after each optimiser step.

        Raises ValueError, naming the first bad tensor and leaving all averages and the count as they were, if the
        weights are not finite; RuntimeError while an average is applied.
        """
        self._refuse_while_applied("update")
        t = self.updates + 1
        acting = [a for a in self._averages.values() if a.profile.acts(t) > a.acts]
        live = self._live()
        if self.check_finite and (acting or any(a.profile.start == t for a in self._averages.values())):
            bad = kernels.first_non_finite([f.name for f in self.followed], live)
            if bad is not None:
                raise ValueError(
                    f"{bad!r} is not finite at update {t}; the averages are as they were before it"
                )
        moves = []
        for average in acting:
            average.acts += 1
            fresh, average.log_kept = average.profile.advance(average.acts, average.log_kept)
            moves.append(kernels.Move(average.shadows, [fresh] * len(live), average.lost))
        kernels.move(live, moves)
        self.updates = t
        self._begin()

    @torch.no_grad()
    def _begin(self) -> None:
        """Averages that start from the weights of this very update copy them."""
        for average in self._averages.values():
            if average.profile.from_initial and average.profile.start == self.updates:
                for shadow, live in zip(average.shadows, self._live(), strict=True):
                    shadow.copy_(live)

    def _live(self) -> list[Tensor]:
        if self.frozen == "live":
            kept = {id(f.tensor) for f in self._parameters}
            for name, p in self.model.named_parameters():
                if p.requires_grad and id(p) not in kept:
                    raise ValueError(
                        f"{name!r} was frozen when the averager was made with frozen='live' and is trained now: "
                        "make the averager after unfreezing, or with frozen='average'"
                    )
        return [tensors.local(f.tensor.detach()) for f in self.followed]

    def _refuse_while_applied(self, what: str) -> None:
        if self.applied_name is not None:
            raise RuntimeError(
                f"cannot {what} while average {self.applied_name!r} is applied: leave its block first"
            )

    # -- evaluation -------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def applied(self, name: str) -> Iterator[nn.Module]:
        """Inside the block the model has the weights of average `name`; "raw" leaves its own.

        Weights change hands by pointer. Buffers are copies in either case, so that what a forward in training
        mode does to them is gone after the block. Training weights return also when the block raises. Inside,
        `update`, a second `applied` and any optimiser step on the model's parameters raise RuntimeError.
        """
        self._refuse_while_applied("apply another average")
        values = self._values(name)
        self.applied_name = name
        try:
            with swapped(self.followed, values, self._buffers):
                yield self.model
        finally:
            self.applied_name = None

    def export(self, name: str, dtype: torch.dtype | None = None) -> dict[str, Any]:
        """The averaged model's state_dict: copies, under the plain model's names, in its types (or `dtype`)."""
        values = self._values(name)
        if self.applied_name not in (None, RAW):
            raise RuntimeError(f"cannot export while average {self.applied_name!r} is applied")
        averaged = {id(f.tensor): v for f, v in zip(self.followed, values or (), strict=values is not None)}
        state: dict[str, Any] = {}
        for key, value in tensors.state_of(self.model):
            if isinstance(value, Tensor):
                own = dtype if dtype is not None and tensors.averageable(value) else value.dtype
                value = tensors.like(value, averaged.get(id(value))).to(own, copy=True)
            state[key] = value
        return state

    def state_of(self, name: str) -> Iterator[tuple[tensors.Followed, Tensor]]:
        """(parameter or buffer, its value in average `name`) for every tensor of the model, tied ones once."""
        values = self._values(name)
        averaged = {id(f.tensor): v for f, v in zip(self.followed, values or (), strict=values is not None)}
        for f in [*self._parameters, *self._buffers]:
            yield f, averaged.get(id(f.tensor), f.tensor.detach())

    def _values(self, name: str) -> list[Tensor] | None:
        """The tensors of an average; None where they are the model's own."""
        if name == RAW:
            return None
        if name not in self._averages:
            raise ValueError(f"no average {name!r}{nearest(name, [RAW, *self._averages])}")
        average = self._averages[name]
        return average.shadows if average.profile.begun(self.updates) else None

    # -- state ------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit: tensors (not copied) and plain values only."""
        self._refuse_while_applied("save the averages")
        return {
            "format": 1,
            "updates": self.updates,
            "averages": {name: self._state_of(average) for name, average in self._averages.items()},
        }

    def _state_of(self, average: Average) -> dict[str, Any]:
        begun = average.profile.begun(self.updates)
        names = [f.name for f in self.followed]
        state: dict[str, Any] = {
            "profile": average.profile.to_dict(),
            "acts": average.acts,
            "log_kept": average.log_kept,
            "weights": dict(zip(names, average.shadows, strict=True)) if begun else {},
        }
        if average.lost is not None and begun:
            state["lost"] = dict(zip(names, average.lost, strict=True))
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; the averages keep the type they are held in.

        Raises ValueError, changing nothing, where names, profiles or shapes differ or a type would be narrowed.
        """
        self._refuse_while_applied("load averages")
        if state.get("format") != 1:
            raise ValueError(f"not a state of an Averager: format={state.get('format')!r}, expected 1")
        saved = state["averages"]
        if set(saved) != set(self._averages):
            raise ValueError(
                f"the state holds averages {sorted(saved)}, this averager {sorted(self._averages)}"
            )
        for name, average in self._averages.items():
            self._check_fits(name, average, saved[name], int(state["updates"]))
        for name, average in self._averages.items():
            average.acts, average.log_kept = int(saved[name]["acts"]), float(saved[name]["log_kept"])
            for kind, targets in (("weights", average.shadows), ("lost", average.lost or [])):
                given = saved[name].get(kind) or {}
                for f, target in zip(self.followed, targets, strict=False):
                    if f.name in given:
                        target.copy_(given[f.name])
        self.updates = int(state["updates"])

    def _check_fits(self, name: str, average: Average, saved: Mapping[str, Any], updates: int) -> None:
        if from_dict(saved["profile"]) != average.profile:
            raise ValueError(
                f"average {name!r} was {saved['profile']}, it is {average.profile.to_dict()} now"
            )
        expected = [f.name for f in self.followed] if average.profile.begun(updates) else []
        kinds = (
            {"weights": average.shadows}
            if average.lost is None
            else {
                "weights": average.shadows,
                "lost": average.lost,
            }
        )
        for kind, targets in kinds.items():
            given = saved.get(kind, {})
            for key in [*(k for k in expected if k not in given), *(k for k in given if k not in expected)]:
                missing = "lacks" if key in expected else "holds the unknown"
                raise ValueError(f"average {name!r}: the state {missing} tensor {key!r} ({kind})")
            for key, target in zip(expected, targets, strict=False):
                if given[key].shape != target.shape:
                    has, fits = tuple(given[key].shape), tuple(target.shape)
                    raise ValueError(f"average {name!r}: {key!r} has shape {has} in the state, {fits} here")
                if torch.promote_types(given[key].dtype, target.dtype) != target.dtype:
                    raise ValueError(
                        f"average {name!r}: {key!r} is {given[key].dtype} in the state and would be narrowed to "
                        f"{target.dtype}; make the averager with dtype={given[key].dtype}"
                    )


def weight_left(average: Average) -> float:
    """Weight that the initial weights still have in an average that started from them."""
    return math.exp(average.log_kept) if average.profile.from_initial else 0.0
