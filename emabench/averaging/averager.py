"""The engine: K averages of one model's weights, carried along its training."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from emabench.averaging import gradients, state, tensors
from emabench.averaging._checks import NotFinite, check_choice, nearest
from emabench.averaging.kernels import Move, Plan, first_non_finite
from emabench.averaging.layers import PerLayer
from emabench.averaging.mixture import Mixture
from emabench.averaging.offload import Offload
from emabench.averaging.profiles import EMA, Profile, from_dict
from emabench.averaging.swap import Lender
from emabench.averaging.tensors import Followed

RAW = "raw"


@dataclass
class Average:
    """One average: its rule, how far it has come, and its tensors (in the order of `Averager.followed`).

    slots: sets of tensors, one for a profile that is updated in place, k for the k latest snapshots, none for a
    mixture; first: index of the first of them among all sets; lost: what compensated summation carries.
    log_kept: by part of the profile, log of the weight left on the start.
    """

    profile: Profile
    slots: list[list[Tensor]]
    lost: list[Tensor] | None
    first: int
    part: list[int]
    acts: int
    log_kept: list[float]


class Averager:
    """Carries averages of `model`'s weights.

    Args:
        model: what is averaged; may be compiled, wrapped in DDP, sharded by FSDP2 (each process averages its
            shards). Make the averager after the model is on its device.
        profiles: by name, the rule of each average, or the mapping that describes it. "raw" is not a name: it
            means the current weights.
        buffers: "average" averages floating-point buffers as weights and copies integers; "copy" takes the
            model's current ones; "recompute" does as well, and says that `recalibrate` is to be called inside
            `applied`. Buffers that are not in the state_dict are left alone.
        frozen: "average" follows parameters that need no gradient too; "live" leaves those out, saves their
            memory, and refuses to go on when one of them is unfrozen.
        dtype: type of the averages; float32 if not given, or the parameter's own where that is wider.
        compensated: Kahan summation for all averages or the named ones, at twice their memory; for decays above
            .99999.
        check_finite: refuse an update from weights that are NaN or infinite, leaving all averages as they were.
            Reads every parameter once more before the update: between a half and two thirds of the cost of an
            update with one average, a fifth with four.
        offload: keep the averages on the CPU and update them in a thread while training goes on.

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
        offload: bool = False,
    ) -> None:
        check_choice("buffers", buffers, ("average", "copy", "recompute"))
        check_choice("frozen", frozen, ("average", "live"))
        self.model, self.frozen, self.check_finite, self.dtype = model, frozen, check_finite, dtype
        self.updates = 0
        self._average_buffers = buffers == "average"
        self._follow(*tensors.followed(model, frozen))
        self._sharded = any(map(tensors.is_sharded, self._tensors))
        self._layers = [f.name.rpartition(".")[0] for f in self.followed]
        self._offload = Offload(self._live()) if offload else None
        self._averages: dict[str, Average] = {}
        self._sets: list[list[Tensor]] = []
        self._lost: list[list[Tensor] | None] = []
        kahan = set(profiles if compensated is True else compensated or ())
        for name in kahan - set(profiles):
            raise ValueError(f"compensated={name!r} is none of the averages{nearest(name, profiles)}")
        for name, rule in profiles.items():
            self._add(name, from_dict(rule), name in kahan)
        for name, average in self._averages.items():
            if isinstance(average.profile, Mixture):
                self._check_mixture(average.profile, name)
        self._plan: Plan | None = None
        self.applied_name: str | None = None
        with torch.no_grad():
            self._run(self._beginning(0), "before the first update")

    def _follow(self, parameters: list[Followed], buffers: list[Followed]) -> None:
        self._parameters, self._buffers = parameters, buffers
        averaged = [b for b in buffers if self._average_buffers and tensors.averageable(b.tensor)]
        self.followed = parameters + averaged
        self._tensors = [f.tensor for f in self.followed]
        self._lender = Lender(self.model, self.followed, buffers)
        self._places = tensors.Places(self.model, parameters + buffers)

    def _look_again(self) -> None:
        """Follow buffers that the model has exchanged, as its `to` does; refuse to lose sight of a parameter."""
        if self._places.unchanged():
            return
        now = dict(tensors.state_of(self.model))

        def found(f: Followed) -> Followed:
            tensor = now.get(f.name)
            if tensor is not f.tensor and not (f.is_buffer and isinstance(tensor, Tensor)):
                raise RuntimeError(
                    f"{f.name!r} was replaced or taken out since the averager was made, which would go on with what "
                    "is no longer in the model: make a new averager"
                )
            return replace(f, tensor=tensor)

        self._follow([found(f) for f in self._parameters], [found(f) for f in self._buffers])

    def _add(self, name: str, profile: Profile, compensated: bool) -> None:
        if name == RAW:
            raise ValueError(f"average {RAW!r}: that name means the current weights; choose another")
        profile._require_bound()
        if isinstance(profile, PerLayer):
            for pattern, rule in zip(profile.rules, range(1, len(profile.parts)), strict=True):
                if not any(profile.part_of(f.name) == rule for f in self.followed):
                    raise ValueError(f"average {name!r}: no tensor follows the rule {pattern!r}")
        if not compensated and any(isinstance(p, EMA) and p.beta > 0.99999 for p in profile.parts):
            warnings.warn(
                f"average {name!r}: above decay .99999 float32 loses steps; pass compensated=True "
                "(in a run: ema.compensated=true)",
                stacklevel=3,
            )
        slots = [[self._like(f.tensor) for f in self.followed] for _ in range(profile.snapshots)]
        lost = [torch.zeros_like(s) for s in slots[0]] if compensated and len(slots) == 1 else None
        part = [profile.part_of(f.name) for f in self.followed]
        self._averages[name] = Average(
            profile, slots, lost, len(self._sets), part, 0, [0.0] * len(profile.parts)
        )
        self._sets += slots
        self._lost += [lost] * len(slots)

    def _like(self, tensor: Tensor) -> Tensor:
        device = "cpu" if self._offload else None
        shard = tensors.local(tensor.detach())
        return torch.empty_like(shard, dtype=tensors.shadow_dtype(tensor, self.dtype), device=device)

    def _check_mixture(self, mixture: Mixture, name: str) -> None:
        for part in mixture.of:
            if part != RAW and (
                part not in self._averages or isinstance(self._averages[part].profile, Mixture)
            ):
                known = [n for n, a in self._averages.items() if not isinstance(a.profile, Mixture)]
                raise ValueError(
                    f"{name!r} mixes {part!r}, which is no average to mix{nearest(part, [RAW, *known])}"
                )

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

        Profiles that look at gradients need them still in place. Raises NotFinite, naming the first bad tensor
        and leaving all averages and the count as they were, if the weights are not finite (when offloaded, at the
        next call); RuntimeError while an average is applied.
        """
        self._refuse_while_applied("update")
        self._wait()
        self._look_again()
        t = self.updates + 1
        before = [(a.acts, a.log_kept) for a in self._averages.values()]
        self.updates = t
        try:
            moves = [self._act(a) for a in self._averages.values() if a.profile.acts(t) > a.acts]
            self._run(moves + self._beginning(t), f"at update {t}")
        except Exception:
            self._rewind(before)
            raise
        if self._offload:
            self._offload.on_failure(lambda: self._rewind(before))

    def _rewind(self, before: Sequence[tuple[int, list[float]]]) -> None:
        self.updates -= 1
        for average, (acts, log_kept) in zip(self._averages.values(), before, strict=True):
            average.acts, average.log_kept = acts, log_kept

    def _act(self, average: Average) -> Move:
        profile, slot = average.profile, average.first + average.acts % len(average.slots)
        average.acts += 1
        if isinstance(profile, gradients.GradientProfile):
            norms = gradients.norms(self._parameters)
            by_layer = profile.fresh({layer: norms.get(layer, 0.0) for layer in self._layers})
            return Move(slot, [by_layer[layer] for layer in self._layers])
        steps = [
            p.advance(average.acts, kept) for p, kept in zip(profile.parts, average.log_kept, strict=True)
        ]
        average.log_kept = [kept for _, kept in steps]
        if len(steps) == 1:
            return Move(slot, [steps[0][0]] * len(self.followed))
        return Move(slot, [steps[i][0] for i in average.part])

    def _beginning(self, t: int) -> list[Move]:
        """Averages that start from the weights of this very update copy them."""
        begun = [a for a in self._averages.values() if a.profile.start == t and a.profile.from_initial]
        return [Move(a.first, [1.0] * len(self.followed)) for a in begun]

    def _run(self, moves: list[Move], when: str) -> None:
        if not moves:
            return
        live = self._live()
        if self._offload:
            self._offload.start(live, lambda staged: self._move(staged, moves, when))
        else:
            self._move(live, moves, when)

    def _move(self, live: Sequence[Tensor], moves: list[Move], when: str) -> None:
        if self._plan is None or not self._plan.fits(live):
            self._check_devices(live)
            self._plan = Plan(live, self._sets, self._lost)
        if self.check_finite and not self._plan.finite():
            bad = first_non_finite([f.name for f in self.followed], live)
            if bad is not None:
                raise NotFinite(f"{bad!r} is not finite {when}; the averages are as they were before")
        self._plan.run(moves)

    def _check_devices(self, live: Sequence[Tensor]) -> None:
        for f, tensor, shadow in zip(self.followed, live, self._sets[0] if self._sets else live, strict=True):
            if tensor.device != shadow.device or tensor.shape != shadow.shape:
                raise ValueError(
                    f"{f.name!r} is {tuple(tensor.shape)} on {tensor.device}, its average {tuple(shadow.shape)} on "
                    f"{shadow.device}: make the averager after the model has its shape and device"
                )

    def _live(self) -> list[Tensor]:
        if self.frozen == "live":
            kept = {id(f.tensor) for f in self._parameters}
            for name, p in self.model.named_parameters():
                if p.requires_grad and id(p) not in kept:
                    raise ValueError(
                        f"{name!r} was frozen when the averager was made with frozen='live' and is trained now: "
                        "make the averager after unfreezing, or with frozen='average'"
                    )
        return [tensors.local(f.tensor) for f in self.followed] if self._sharded else self._tensors

    def _wait(self) -> None:
        if self._offload:
            self._offload.wait()

    def _refuse_while_applied(self, what: str) -> None:
        if self.applied_name is not None:
            raise RuntimeError(
                f"cannot {what} while average {self.applied_name!r} is applied: leave its block first"
            )

    def __getstate__(self) -> dict[str, Any]:
        """For copy.deepcopy and pickle, which copy the model along: all but addresses of memory."""
        self._refuse_while_applied("copy the averager")
        self._wait()
        return {**self.__dict__, "_plan": None}

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Call `update` after each step that `optimizer` really makes; `.remove()` on the result detaches.

        Backward passes that only accumulate make no step, and steps that a GradScaler skips are not counted.
        """

        def after(stepped: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            skipped = getattr(stepped, "found_inf", None)  # fused optimisers are stepped, and skip inside
            if skipped is None or not float(skipped):
                self.update()

        return optimizer.register_step_post_hook(after)

    # -- evaluation -------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def applied(self, name: str | Mixture) -> Iterator[nn.Module]:
        """Inside the block the model has the weights of average `name` (or of a mixture); "raw" leaves its own.

        Weights change hands by pointer. Buffers are copies in either case, so that what a forward in training
        mode does to them is gone after the block. Training weights return also when the block raises. Inside,
        `update`, a second `applied` and any optimiser step on the model's parameters raise RuntimeError.
        """
        self._refuse_while_applied("apply another average")
        self._look_again()
        values = self._values(name)
        self.applied_name = str(name)
        try:
            with self._lender.lend(values):
                yield self.model
        finally:
            self.applied_name = None

    @torch.no_grad()
    def export(self, name: str | Mixture, dtype: torch.dtype | None = None) -> dict[str, Any]:
        """The averaged model's state_dict: copies, under the plain model's names, in its types (or `dtype`).

        DTensors stay DTensors. With tied weights every name is there.
        """
        self._refuse_while_applied("export")
        self._look_again()
        values = self._values(name)
        averaged = {id(f.tensor): v for f, v in zip(self.followed, values or (), strict=values is not None)}
        exported: dict[str, Any] = {}
        for key, value in tensors.state_of(self.model):
            if isinstance(value, Tensor):
                own = (
                    tensors.shadow_dtype(value, dtype)
                    if dtype and tensors.averageable(value)
                    else value.dtype
                )
                value = tensors.like(value, averaged.get(id(value))).to(value.device, own, copy=True)
            exported[key] = value
        return exported

    def state_of(self, name: str | Mixture) -> Iterator[tuple[tensors.Followed, Tensor]]:
        """(parameter or buffer, its value in average `name`) for every tensor of the model, tied ones once."""
        values = self._values(name)
        averaged = {id(f.tensor): v for f, v in zip(self.followed, values or (), strict=values is not None)}
        for f in [*self._parameters, *self._buffers]:
            yield f, averaged.get(id(f.tensor), tensors.local(f.tensor.detach()))

    def weights(self, name: str | Mixture, T: int | None = None) -> np.ndarray:
        """The weight of each step in average `name` after T updates (now, if not given), as `Profile.weights`."""
        T = self.updates if T is None else T
        profile = name if isinstance(name, Mixture) else self.profiles.get(name)
        if isinstance(profile, Mixture):
            return np.sum([w * self.weights(part, T) for part, w in profile.of.items()], axis=0)
        if profile is None and name != RAW:
            raise ValueError(f"no average {name!r}{nearest(str(name), [RAW, *self._averages])}")
        return profile.weights(T) if profile else np.eye(1, T + 1, T)[0]

    @torch.no_grad()
    def _values(self, name: str | Mixture) -> list[Tensor] | None:
        """The tensors of an average; None where they are the model's own."""
        self._wait()
        if name == RAW:
            return None
        if isinstance(name, Mixture):
            self._check_mixture(name, "the mixture")
            return self._sum(name)
        if name not in self._averages:
            raise ValueError(f"no average {name!r}{nearest(name, [RAW, *self._averages])}")
        average = self._averages[name]
        if isinstance(average.profile, Mixture):
            return self._sum(average.profile)
        if not average.profile.begun(self.updates):
            return None
        if len(average.slots) == 1:
            return average.slots[0]
        mean = [t.clone() for t in average.slots[0]]
        for taken, slot in enumerate(average.slots[1 : average.acts], 2):
            for m, t in zip(mean, slot, strict=True):
                m.lerp_(t, 1.0 / taken)
        return mean

    def _sum(self, mixture: Mixture) -> list[Tensor]:
        total = [torch.zeros_like(self._like(f.tensor)) for f in self.followed]
        for name, weight in mixture.of.items():
            for into, value in zip(total, self._values(name) or self._live(), strict=True):
                into.add_(value.to(into.device, into.dtype), alpha=weight)
        return total

    # -- state ------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit: tensors (not copied) and plain values only.

        Under FSDP2 they are DTensors. `load_state_dict` takes them, or the whole tensors.
        """
        self._refuse_while_applied("save the averages")
        self._wait()
        return state.save(self.updates, self.followed, self._averages)

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; the averages keep the type they are held in.

        Raises ValueError, changing nothing, where names, profiles or shapes differ or a type would be narrowed.
        """
        self._refuse_while_applied("load averages")
        self._wait()
        self.updates = state.load(saved, self.followed, self._averages)
