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
from emabench.averaging.mixture import Mixture
from emabench.averaging.offload import Offload
from emabench.averaging.profiles import RAW, Profile, Stepper, from_dict
from emabench.averaging.swap import Swap
from emabench.averaging.tensors import Followed


@dataclass
class Average:
    """One average: its rule, how far it has come, and its tensors (in the order of `Averager.followed`).

    sets: lists of tensors, one for a profile that is updated in place, k for the k latest snapshots, none for a
    mixture; first_set: index of the first of them among the sets of all averages; compensation: the bits that
    compensated summation carries; updates_done: how many times the average has changed.
    """

    profile: Profile
    stepper: Stepper
    sets: list[list[Tensor]]
    compensation: list[Tensor] | None
    first_set: int
    updates_done: int = 0


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
            memory, and refuses to update once one of them is unfrozen.
        dtype: type of the averages; float32 if not given, or the parameter's own where that is wider.
        compensated: Kahan summation for all averages or the named ones, at twice their memory; for decays above
            .99999.
        check_finite: refuse an update from weights that are NaN or infinite, leaving all averages as they were.
            On a CPU this costs a few per cent of an update, and an eighth of an average's memory.
        offload: keep the averages on the CPU and update them in a thread beside the training.

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
        self._set_followed(*tensors.followed(model, frozen))
        self._sharded = any(map(tensors.is_sharded, self._tensors))
        self._offload = Offload(self._live()) if offload else None
        self._averages: dict[str, Average] = {}
        self._sets: list[list[Tensor]] = []
        self._compensation: list[list[Tensor] | None] = []
        kahan = set(profiles if compensated is True else compensated or ())
        for name in kahan - set(profiles):
            raise ValueError(f"compensated={name!r} is none of the averages{nearest(name, profiles)}")
        for name, rule in profiles.items():
            self._add(name, from_dict(rule), name in kahan)
        for name, average in self._averages.items():
            self._check_combined(average.profile, name)
        self._plan: Plan | None = None
        self._unsettled: list[
            tuple[int, list[tuple[int, list[float]]]]
        ] = []  # updates that a GPU may yet refuse
        self.applied_name: str | None = None
        with torch.no_grad():
            self._run(self._initial_copies(0), "before the first update")

    def _set_followed(self, parameters: list[Followed], buffers: list[Followed]) -> None:
        self._parameters, self._buffers = parameters, buffers
        averaged = [b for b in buffers if self._average_buffers and tensors.averageable(b.tensor)]
        self.followed = parameters + averaged
        self._tensors = [f.tensor for f in self.followed]
        self._swap = Swap(self.model, self.followed, buffers)
        self._structure = tensors.Structure(self.model, parameters + buffers)

    def _follow_exchanged_buffers(self) -> None:
        """Follow buffers that the model has exchanged, as its `to` does; refuse to lose sight of a parameter."""
        if self._structure.unchanged():
            return
        now = dict(tensors.state_of(self.model))

        def current(f: Followed) -> Followed:
            tensor = now.get(f.name)
            if tensor is not f.tensor and not (f.is_buffer and isinstance(tensor, Tensor)):
                raise RuntimeError(
                    f"{f.name!r} was replaced or taken out since the averager was made, which would average what is no "
                    "longer in the model: make a new averager"
                )
            return replace(f, tensor=tensor)

        self._set_followed([current(f) for f in self._parameters], [current(f) for f in self._buffers])

    def _add(self, name: str, profile: Profile, compensated: bool) -> None:
        if name == RAW:
            raise ValueError(f"average {RAW!r}: that name means the current weights; choose another")
        profile._require_bound()
        try:
            stepper = profile.stepper([f.name for f in self.followed])
        except ValueError as error:
            raise ValueError(f"average {name!r}: {error}") from None
        if profile.needs_compensation and not compensated:
            warnings.warn(
                f"average {name!r}: above decay .99999 float32 loses steps; pass compensated=True "
                "(in a run: ema.compensated=true)",
                stacklevel=3,
            )
        sets = [[self._like(f.tensor) for f in self.followed] for _ in range(profile.sets)]
        compensation = [torch.zeros_like(s) for s in sets[0]] if compensated and len(sets) == 1 else None
        self._averages[name] = Average(profile, stepper, sets, compensation, len(self._sets))
        self._sets += sets
        self._compensation += [compensation] * len(sets)

    def _like(self, tensor: Tensor) -> Tensor:
        device = "cpu" if self._offload else None
        shard = tensors.local(tensor.detach())
        return torch.empty_like(shard, dtype=tensors.shadow_dtype(tensor, self.dtype), device=device)

    def _check_combined(self, profile: Profile, name: str) -> None:
        known = [RAW, *(n for n, a in self._averages.items() if not a.profile.combines)]
        for other in profile.combines:
            if other not in known:
                raise ValueError(
                    f"{name!r} mixes {other!r}, which is no average to mix{nearest(other, known)}"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The averages, in the order given."""
        return tuple(self._averages)

    @property
    def profiles(self) -> dict[str, Profile]:
        """The rule of each average."""
        return {name: average.profile for name, average in self._averages.items()}

    @property
    def arithmetic(self) -> str:
        """What computes the updates: "c", "triton" or "torch"; they differ in the last bits of their results."""
        live = self._offload.staged if self._offload else self._live()
        return (self._plan or Plan(live, self._sets, self._compensation)).arithmetic

    # -- training ---------------------------------------------------------------------------------------------
    @torch.no_grad()
    def update(self) -> None:
        """Let every average see the current weights; call it after each optimiser step.

        Profiles that look at gradients need them still in place. Raises NotFinite, naming the first bad tensor
        and leaving all averages and the count as they were, if the weights are not finite (when offloaded, at the
        next call); RuntimeError while an average is applied.
        """
        self._refuse_while_applied("update")
        self._wait(for_device=False)
        self._follow_exchanged_buffers()
        t = self.updates + 1
        before = [(a.updates_done, a.stepper.state) for a in self._averages.values()]
        self.updates = t
        try:
            due = [a for a in self._averages.values() if a.profile.updates_done(t) > a.updates_done]
            moves = [move for average in due for move in self._step(average)]
            self._run(moves + self._initial_copies(t), f"at update {t}")
        except Exception:
            self._rewind(t - 1, before)
            raise
        if self._offload:
            self._offload.on_failure(lambda: self._rewind(t - 1, before))
        elif self.check_finite and self._plan is not None and self._plan.answers_later:
            self._unsettled.append((t, before))

    def _rewind(self, updates: int, before: Sequence[tuple[int, list[float]]]) -> None:
        self.updates = updates
        for average, (updates_done, log_weights) in zip(self._averages.values(), before, strict=True):
            average.updates_done, average.stepper.state = updates_done, log_weights

    def _step(self, average: Average) -> list[Move]:
        average.updates_done += 1
        steps = average.stepper.step(average.updates_done, lambda: gradients.norms(self._parameters))
        first = average.first_set
        return [Move(first + s.set, s.alphas, None if s.source is None else first + s.source) for s in steps]

    def _initial_copies(self, t: int) -> list[Move]:
        """Averages that start from the weights of this very update copy them."""
        return [
            Move(a.first_set + i, [1.0] * len(self.followed))
            for a in self._averages.values()
            for i in a.stepper.initial_copies(t)
        ]

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
            self._settle(wait=True)
            self._check_devices(live)
            self._plan = Plan(live, self._sets, self._compensation)
        if not self._plan.update(moves, self.check_finite, self.updates):
            bad = first_non_finite([f.name for f in self.followed], live)
            if bad is not None:
                raise NotFinite(f"{bad!r} is not finite {when}; the averages are as they were before")
            self._plan.update(moves)

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

    def _wait(self, for_device: bool = True) -> None:
        """Return when the averages are what they should be; raise what an update in flight raised."""
        if self._offload:
            self._offload.wait()
        self._settle(for_device)

    def _settle(self, wait: bool) -> None:
        """Take note of the updates that a GPU has made, or take back those that it refused to make."""
        if not self._unsettled or self._plan is None:
            return
        refused, reached = self._plan.progress(wait)
        if not refused:
            self._unsettled = [(t, before) for t, before in self._unsettled if t > reached]
            return
        self._plan.progress(wait=True)  # what is still in flight is refused as well
        [before] = [before for t, before in self._unsettled if t == refused]
        lost = self.updates - refused + 1
        self._unsettled = []
        self._plan.reset()
        self._rewind(refused - 1, before)
        bad = first_non_finite([f.name for f in self.followed], self._live())
        raise NotFinite(
            f"{f'{bad!r} is' if bad else 'the weights were'} not finite, first at update {refused}; the averages are as "
            f"they were before it, the {lost} updates from there on were not made"
        )

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
        self._follow_exchanged_buffers()
        values = self._values(name)
        self.applied_name = str(name)
        try:
            with self._swap.applied(values):
                yield self.model
        finally:
            self.applied_name = None

    @torch.no_grad()
    def export(self, name: str | Mixture, dtype: torch.dtype | None = None) -> dict[str, Any]:
        """The averaged model's state_dict: copies, under the plain model's names, in its types (or `dtype`).

        DTensors stay DTensors. With tied weights every name is there.
        """
        self._refuse_while_applied("export")
        self._follow_exchanged_buffers()
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
        if name == RAW:
            return np.eye(1, T + 1, T)[0]
        profile = self._profile(name)
        if profile.combines:
            return np.sum([w * self.weights(str(other), T) for other, w in profile.read(T).items()], axis=0)
        return profile.weights(T)

    def _profile(self, name: str | Profile) -> Profile:
        """The rule of an average, or a mixture that is not one of them. ValueError for an unknown name."""
        if isinstance(name, str):
            if name not in self._averages:
                raise ValueError(f"no average {name!r}{nearest(name, [RAW, *self._averages])}")
            return self._averages[name].profile
        self._check_combined(name, "the mixture")
        return name

    @torch.no_grad()
    def _values(self, name: str | Mixture) -> list[Tensor] | None:
        """The tensors of an average; None where they are the model's own."""
        self._wait()
        if name == RAW:
            return None
        own = self._averages[name].sets if isinstance(name, str) and name in self._averages else []
        terms: list[tuple[float, Sequence[Tensor] | None]] = [
            (weight, own[key] if isinstance(key, int) else self._values(key))
            for key, weight in self._profile(name).read(self.updates).items()
        ]
        if len(terms) == 1 and terms[0][0] == 1.0:
            [(_, values)] = terms
            return None if values is None else list(values)
        return self._combined(
            [(weight, self._live() if values is None else values) for weight, values in terms]
        )

    def _combined(self, terms: Sequence[tuple[float, Sequence[Tensor]]]) -> list[Tensor]:
        """Σ weight · values. Positive weights make a running mean, which leaves equal values exactly as they are."""
        total = [torch.zeros_like(self._like(f.tensor)) for f in self.followed]
        positive, weight_so_far = all(weight > 0 for weight, _ in terms), 0.0
        for weight, values in terms:
            weight_so_far += weight
            for into, value in zip(total, values, strict=True):
                value = value.to(into.device, into.dtype)
                if positive:
                    into.lerp_(value, weight / weight_so_far)
                else:
                    into.add_(value, alpha=weight)
        return total

    # -- state ------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume bit for bit: tensors (not copied) and plain values only.

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
        if self._plan is not None:
            self._plan.reset()
        self.updates = state.load(saved, self.followed, self._averages)
