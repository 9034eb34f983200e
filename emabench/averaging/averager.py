"""The engine: K averages of one model's weights, carried along its training."""

from __future__ import annotations

import contextlib
import operator
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from emabench.averaging import buffers as kinds
from emabench.averaging import following, gradients, reading, state, tensors
from emabench.averaging._checks import NotFinite, check_choice, nearest
from emabench.averaging.attaching import Attachment, attach
from emabench.averaging.interrupts import interrupts_deferred
from emabench.averaging.kernels import Move, Plan, first_non_finite
from emabench.averaging.layers import PerLayer
from emabench.averaging.mixture import Mixture
from emabench.averaging.offload import Offload
from emabench.averaging.profiles import RAW, Profile, Stepper, from_dict
from emabench.averaging.reading import Status
from emabench.averaging.swap import Swap, applied_to
from emabench.averaging.tensors import Followed

Profiles = Profile | Mapping[str, Any]

Progress = list[tuple[int, list[float]]]
"""By average, its updates_done and its stepper's state."""


@dataclass
class Average:
    """One average: its rule, how far it has come, and its tensors (in the order of `Averager.followed`).

    sets: lists of tensors, one for a profile that is updated in place, k for the k latest snapshots, none for a
    mixture; first_set: index of the first of them among the sets of all averages; compensation: the bits that
    compensated summation carries; updates_done: how many times the average has changed; decay: 1 − alpha of the latest
    change, None if it differs between tensors.
    """

    profile: Profile
    stepper: Stepper
    sets: list[list[Tensor]]
    compensation: list[Tensor] | None
    first_set: int
    updates_done: int = 0
    decay: float | None = None


class Averager:
    """Carries averages of `model`'s weights along its training.

    Args:
        model: what is averaged; may be compiled, wrapped in DDP, sharded by FSDP2 (each process averages its
            shards). Make the averager after the model is on its device. Parameters and buffers themselves are
            followed, whatever the model's state_dict makes of them.
        profiles: by name, the rule of each average, or the mapping that describes it. A rule alone is named after
            its kind: `Averager(model, EMA(decay=0.999))` has the average "ema". "raw" is not a name: it means the
            current weights.
        buffers: the policy of floating-point buffers. "average" averages them as weights; "copy" takes the model's
            current ones; "recompute" does as well, and says that `recalibrate` is to be called inside `applied`.
            Integers, and buffers that hold −inf or NaN when the averager is made (masks), are copied; the vectors of
            spectral normalisation are computed again for the averaged weights. A mapping from name patterns to
            policies makes exceptions, {"*.mask": "copy"}; the first that fits decides, and what none fits is averaged.
            Buffers that are not in the state_dict are left alone.
        parameters: exceptions by name pattern, the first that fits decides. "live" leaves parameters out: in an
            average they are the model's current ones. "average" follows them. A profile is their own rule in every
            average. LoRA weights alone: {"*lora_*": "average", "*": "live"}, or frozen="live".
        frozen: "average" follows parameters that need no gradient too; "live" leaves those out, saves their
            memory, and refuses to update once one of them is unfrozen.
        new: what happens when the model gets parameters or statistics after the averager was made. "refuse" raises
            RuntimeError until `follow` is called; "follow" calls it at the next use.
        dtype: type of the averages; float32 if not given, or the parameter's own where that is wider.
        rounding: "stochastic" rounds averages of dtype=torch.bfloat16 up or down at random, exact in expectation:
            half the memory of float32, at the price of noise of up to a unit in the last place. To the nearest, a
            bfloat16 average at a decay above about .99 does not move.
        compensated: Kahan summation for all averages or the named ones, at twice their memory; for decays above
            .99999.
        check_finite: refuse an update from weights that are NaN or infinite, leaving all averages as they were.
            On a CPU this costs a few per cent of an update, and an eighth of an average's memory.
        offload: keep the averages on the CPU and update them in a thread during training.

    Raises:
        ValueError: for names, patterns and rules that do not fit; for a model whose parameters cannot be averaged
            (none, FSDP1, ZeRO-3, meta, sparse, quantised, 8-bit), naming the first of them.

    An average is the current weights until it starts (see `profiles`).
    """

    def __init__(
        self,
        model: nn.Module,
        profiles: Profiles | Mapping[str, Profiles],
        *,
        buffers: str | Mapping[str, str] = "average",
        parameters: Mapping[str, str | Profiles] | None = None,
        frozen: str = "average",
        new: str = "refuse",
        dtype: torch.dtype | None = None,
        rounding: str = "nearest",
        compensated: bool | Collection[str] = False,
        check_finite: bool = True,
        offload: bool = False,
    ) -> None:
        self.rules = following.rules(buffers, parameters or {}, frozen)
        check_choice("new", new, ("refuse", "follow"))
        check_choice("rounding", rounding, ("nearest", "stochastic"))
        if rounding == "stochastic" and (dtype != torch.bfloat16 or compensated):
            raise ValueError(
                f"rounding='stochastic' with dtype={dtype}, compensated={compensated!r}: it is for averages in "
                "bfloat16 without compensation; pass dtype=torch.bfloat16, or leave rounding out"
            )
        self.rounding = rounding
        self.model, self.new, self.check_finite, self.dtype = model, new, check_finite, dtype
        self.updates = 0
        self._selection = following.select(model, self.rules)
        self._averages: dict[str, Average] = {}
        self._attached: Attachment | None = None
        self._torn = ""  # why the averages hold half of an update, if they do
        self.applied_name: str | None = None
        self._swap: Swap | None = None
        self._structure: following.Structure | None = None
        self._plan: Plan | None = None
        self._unsettled: list[tuple[int, int, Progress]] = []  # updates that a GPU may yet refuse
        self._offload: Offload | None = None
        self._list_tensors()
        if offload:
            self._offload = Offload(self._live())
        named = _named(profiles)
        kahan = set(named if compensated is True else compensated or ())
        for name in kahan - set(named):
            raise ValueError(f"compensated={name!r} is none of the averages{nearest(name, named)}")
        for name, rule in named.items():
            self._add(name, from_dict(rule), name in kahan)
        self._list_sets()
        for name, average in self._averages.items():
            self._check_combined(average.profile, name)
        with torch.no_grad():
            self._run(self._initial_copies(0), "before the first update")

    # -- what is followed -------------------------------------------------------------------------------------
    @property
    def followed(self) -> list[Followed]:
        """The parameters and buffers that are averaged, each tensor once; all sets of tensors have this order."""
        return self._followed

    @property
    def names(self) -> tuple[str, ...]:
        """The averages, in the order given."""
        return tuple(self._averages)

    @property
    def profiles(self) -> dict[str, Profile]:
        """The rule of each average."""
        return {name: average.profile for name, average in self._averages.items()}

    @property
    def sharded(self) -> bool:
        """Whether this process holds only its part of the weights (FSDP2, tensor parallel)."""
        return self._sharded

    @property
    def arithmetic(self) -> str:
        """What computes the updates: "c", "triton" or "torch"; they differ in the last bits of their results."""
        live = self._offload.staged if self._offload else self._live()
        return (self._plan or Plan(live, self._sets, self._compensation, self.rounding)).arithmetic

    @property
    def averages(self) -> Mapping[str, Average]:
        """By name, each average's rule, progress and tensors; for reading and writing states."""
        return self._averages

    def live(self) -> list[Tensor]:
        """The model's tensors in the order of `followed`; of sharded ones, this process's part."""
        return self._live()

    def latest_decay(self, name: str) -> float | None:
        """The decay of the latest change of an average, 1 − alpha; None before it, or if tensors differ in it."""
        return self._averages[name].decay

    def follow(self) -> list[str]:
        """Follow the model as it is now; call it after layers were added, replaced or taken out.

        What is new joins every average with the value it has now, as if it had always had it. What was replaced by a
        tensor of the same name and shape keeps its average. What is gone is dropped.

        Returns:
            A sentence for each tensor that was added, renamed, replaced or dropped.
        """
        self._refuse_while_applied("follow the model")
        self._wait()
        return self._adopt(following.select(self.model, self.rules, known=self._selection.policies))

    def _look_for_changes(self) -> None:
        """Take over buffers that the model exchanged, as its `to` does; refuse what would leave weights raw."""
        if self._sharded:
            following.reshard(self.model)
        if self._structure is None:
            self._watch()
        elif self._structure.unchanged():
            return
        now = following.select(self.model, self.rules, known=self._selection.policies)
        added, gone, stays = following.changes(self.followed, now)
        replaced = [old for old, f in stays if old.tensor is not f.tensor and not f.is_buffer]
        if self.new == "refuse" and added:
            raise RuntimeError(
                f"{added[0].name!r} was added to the model after the averager was made and would stay raw in every "
                'average: call averager.follow() to average it from now on, or make the averager with new="follow"'
            )
        if replaced or gone:
            raise RuntimeError(
                f"{[*replaced, *gone][0].name!r} was replaced or taken out since the averager was made, which would "
                "average what is no longer in the model: call averager.follow(), or make a new averager"
            )
        self._adopt(now)

    def _adopt(self, now: following.Selection) -> list[str]:
        """Follow what `now` holds, taking along the averages of what stays."""
        self._settle(wait=True)
        added, gone, stays = following.changes(self.followed, now)
        old_index = {id(f.tensor): i for i, f in enumerate(self.followed)}
        source = {id(f.tensor): old_index[id(old.tensor)] for old, f in stays}
        messages = [f"{f.name!r} is averaged from now on" for f in added]
        messages += [f"{f.name!r} is no longer in the model" for f in gone]
        messages += [f"{old.name!r} is called {f.name!r} now" for old, f in stays if old.name != f.name]
        messages += [f"{f.name!r} was replaced" for old, f in stays if old.tensor is not f.tensor]
        averages = list(self._averages.values())
        sets = [one for a in averages for one in [*a.sets, *([a.compensation] if a.compensation else [])]]
        kept = [list(one) for one in sets]
        steppers = [a.profile.stepper([f.name for f in now.followed]) for a in averages]
        self._selection = now
        self._list_tensors()
        for average, stepper in zip(averages, steppers, strict=True):
            stepper.state = average.stepper.state
            average.stepper = stepper
        live = self._live()
        for one, before in zip(sets, kept, strict=True):
            compensation = any(one is a.compensation for a in averages)
            one[:] = [
                self._carried(f.tensor, value, before, source.get(id(f.tensor)), compensation)
                for f, value in zip(self.followed, live, strict=True)
            ]
        self._plan = None
        if self._offload:
            self._offload = Offload(live)
        return messages

    @torch.no_grad()
    def _carried(
        self, tensor: Tensor, value: Tensor, before: Sequence[Tensor], at: int | None, compensation: bool
    ) -> Tensor:
        if at is not None and before[at].shape == value.shape:
            return before[at]
        shadow = self._like(tensor)
        return shadow.zero_() if compensation else shadow.copy_(value)

    def _list_tensors(self) -> None:
        self._followed = self._selection.followed
        self._tensors = [f.tensor for f in self._followed]
        self._sharded = any(map(tensors.is_sharded, self._tensors))
        self._watch()

    def _list_sets(self) -> None:
        self._sets: list[list[Tensor]] = []
        self._compensation: list[list[Tensor] | None] = []
        for average in self._averages.values():
            average.first_set = len(self._sets)
            self._sets += average.sets
            self._compensation += [average.compensation] * len(average.sets)

    def _watch(self) -> None:
        self._structure = following.Structure(self.model)
        self._swap = Swap(self.model, self._followed)
        policies = self._selection.policies
        derived = {
            id(e.tensor) for e in following.entries(self.model) if policies.get(e.name) == "power_iteration"
        }
        self._spectral = [n for n in kinds.spectral_norms(self.model) if {id(n.u), id(n.v)} <= derived]

    def _add(self, name: str, profile: Profile, compensated: bool) -> None:
        if name == RAW:
            raise ValueError(f"average {RAW!r}: that name means the current weights; choose another")
        if not isinstance(name, str):
            raise ValueError(f"average {name!r}: give its name as a string")
        profile._require_bound()
        own = following.own_profiles(self.rules.parameter_patterns)
        try:
            if own and not profile.combines:
                profile = PerLayer.with_rules(profile, own)
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
        self._averages[name] = Average(profile, stepper, sets, compensation, 0)

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

    # -- training ---------------------------------------------------------------------------------------------
    def update(self, step: int | None = None) -> None:
        """Let every average see the current weights; call it after each optimiser step.

        Args:
            step: the number of optimiser steps made so far, for loops that count themselves. The same number as at
                the last call changes nothing (micro-batches of one step). Steps in between that were not seen count
                as if the weights had been the current ones. If not given, each call is the next step.

        Raises:
            NotFinite: the weights are NaN or infinite; names the first bad tensor. All averages and the count are as
                they were. When offloaded, raised by the next call.
            ValueError: `step` is below that of the last call.
            RuntimeError: an average is applied, the averager is attached to an optimiser, or the model has changed.

        Profiles that look at gradients need them still in place.
        """
        if self._attached is not None:
            raise RuntimeError(
                "the averager is attached to an optimiser, whose steps update it: a call to update() would count "
                "them twice; call .remove() on what attach() returned first"
            )
        self._update(step)

    @torch.no_grad()
    def _update(self, step: int | None = None) -> None:
        self._refuse_while_applied("update")
        self._wait(for_device=False)
        if self._torn:
            raise RuntimeError(self._torn)
        t = self.updates + 1 if step is None else operator.index(step)
        if t < self.updates:
            raise ValueError(
                f"step={t}: {self.updates} steps were counted already; give the number of steps made so far"
            )
        if t == self.updates:
            return
        self._look_for_changes()
        before, counted = [(a.updates_done, a.stepper.state) for a in self._averages.values()], self.updates
        self.updates = t
        try:
            moves = self._initial_copies(*range(counted + 1, t + 1))
            begun = {move.set for move in moves}
            for average in self._averages.values():
                moves += [move for move in self._steps(average, t) if move.set not in begun]
        except BaseException:
            self._rewind(counted, before)
            raise
        with interrupts_deferred():
            try:
                self._run(moves, f"at update {t}")
            except Exception:
                self._rewind(counted, before)
                raise
            except BaseException as error:
                self._torn = (
                    f"update {t} was interrupted ({type(error).__name__}) and the averages may hold half of it: load a "
                    "saved state, or make a new averager"
                )
                raise
        if self._offload:
            self._offload.on_failure(lambda: self._rewind(counted, before))
        elif self.check_finite and self._plan is not None and self._plan.answers_later:
            self._unsettled.append((t, counted, before))

    def _rewind(self, updates: int, before: Progress) -> None:
        self.updates = updates
        for average, (updates_done, log_weights) in zip(self._averages.values(), before, strict=True):
            average.updates_done, average.stepper.state = updates_done, log_weights

    def _steps(self, average: Average, t: int) -> list[Move]:
        """The moves of an average up to update t; after missed steps, those of one set make one move."""
        moves: list[Move] = []
        first = average.first_set
        for k in range(average.updates_done + 1, average.profile.updates_done(t) + 1):
            average.updates_done = k
            for s in average.stepper.step(k, lambda: gradients.norms(self._selection.parameters)):
                source = None if s.source is None else first + s.source
                moves.append(Move(first + s.set, s.alphas, source))
        for move in moves[:1]:
            alpha = move.alphas[0]
            average.decay = 1.0 - alpha if move.alphas.count(alpha) == len(move.alphas) else None
        if len({move.set for move in moves}) == len(moves) or any(m.source is not None for m in moves):
            return moves
        joined: dict[int, Sequence[float]] = {}
        for move in moves:
            before = joined.get(move.set)
            joined[move.set] = (
                move.alphas
                if before is None
                else [1 - (1 - a) * (1 - b) for a, b in zip(before, move.alphas, strict=True)]
            )
        return [Move(i, alphas) for i, alphas in joined.items()]

    def _initial_copies(self, *updates: int) -> list[Move]:
        """Averages that start from the weights of one of these very updates copy them."""
        return [
            Move(a.first_set + i, [1.0] * len(self.followed))
            for a in self._averages.values()
            for t in updates
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
            self._plan = Plan(live, self._sets, self._compensation, self.rounding)
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
        for f in self._selection.frozen:
            if f.tensor.requires_grad:
                raise ValueError(
                    f"{f.name!r} was frozen when the averager was made with frozen='live' and is trained now: "
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
            self._unsettled = [entry for entry in self._unsettled if entry[0] > reached]
            return
        self._plan.progress(wait=True)  # what is still in flight is refused as well
        [(counted, before)] = [entry[1:] for entry in self._unsettled if entry[0] == refused]
        undone = self.updates - refused + 1
        self._unsettled = []
        self._plan.reset()
        self._rewind(counted, before)
        bad = first_non_finite([f.name for f in self.followed], self._live())
        raise NotFinite(
            f"{f'{bad!r} is' if bad else 'the weights were'} not finite, first at update {refused}; the averages are as "
            f"they were before it, the {undone} updates from that one on were not made"
        )

    def _refuse_while_applied(self, what: str) -> None:
        applied = self.applied_name or applied_to(self._tensors)
        if applied is not None:
            raise RuntimeError(f"cannot {what} while average {applied!r} is applied: leave its block first")

    def __getstate__(self) -> dict[str, Any]:
        """For copy.deepcopy and pickle, which copy the model along: all but addresses of memory and optimisers."""
        self._refuse_while_applied("copy the averager")
        self._wait()
        return {**self.__dict__, "_plan": None, "_structure": None, "_swap": None, "_attached": None}

    def attach(self, *optimizers: torch.optim.Optimizer) -> Attachment:
        """Update after each step that the optimiser really makes.

        Backward passes that only accumulate make no step, and steps that a GradScaler skips are not counted. Of
        several optimisers that share the model's parameters (Muon and AdamW), one update follows the step of the
        last. Attaching the same again changes nothing.

        Returns:
            A handle whose `.remove()` detaches; it is a context manager too.

        Raises:
            ValueError: an optimiser has none of the parameters that are averaged.
            RuntimeError: the averager is attached to another optimiser.
        """
        return attach(self, optimizers)

    # -- evaluation -------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def applied(self, name: str | Mixture | None = None) -> Iterator[nn.Module]:
        """Inside the block the model has the weights of average `name` (or of a mixture); "raw" leaves its own.

        Weights change hands by pointer. Whatever happens inside (forward passes in training mode, `.to`, in-place
        changes, buffers that are assigned) is gone after the block and does not reach the averages; gradients are
        put aside. A `model.state_dict()` taken inside holds the averaged weights by value. Training weights return
        also when the block raises. Inside, `update`, a second `applied` by this or another averager and any
        optimiser step on the model's parameters raise RuntimeError.

        Args:
            name: may be left out if there is one average.
        """
        self._refuse_while_applied("apply another average")
        self._look_for_changes()
        name = self.one(name)
        values = self._values(name)
        assert self._swap is not None
        self.applied_name = str(name)
        addresses = self._addresses()
        try:
            with self._swap.applied(self.applied_name, values, self._derived(values)):
                yield self.model
        finally:
            self.applied_name = None
            if self._addresses() != addresses:
                self._plan = None

    def _addresses(self) -> list[int]:
        """Where the averages lie. Asking gives a tensor memory of its own, if someone holds a lazy copy of it."""
        return [t.data_ptr() for one in self._sets for t in one]

    def one(self, name: str | Mixture | None) -> str | Mixture:
        """`name`, or that of the only average if it is None."""
        if name is None:
            if len(self._averages) != 1:
                raise ValueError(
                    f"say which average: {', '.join(self._averages) or 'this averager has none'}"
                )
            return next(iter(self._averages))
        return name

    @torch.no_grad()
    def export(
        self,
        name: str | Mixture | None = None,
        dtype: torch.dtype | None = None,
        *,
        device: torch.device | str | None = None,
        names: str = "plain",
        followed_only: bool = False,
    ) -> dict[str, Any]:
        """The averaged model's state_dict, which `model.load_state_dict` takes: copies, contiguous, none shared.

        Args:
            name: the average; may be left out if there is one. "raw" exports the current weights.
            dtype: type of floating-point tensors; the model's own if not given.
            device: where the copies are made, tensor by tensor; "cpu" takes no memory of the GPU. The model's own if
                not given.
            names: "plain", without the prefixes of torch.compile and DistributedDataParallel, or "model", as the
                wrapped model calls its tensors, to load into that.
            followed_only: only what is averaged (an adapter's weights), to load with strict=False.

        Returns:
            Tensors by name, tied ones under every name, and what modules add by `get_extra_state`. DTensors stay
            DTensors. safetensors' save_file takes it.
        """
        self._refuse_while_applied("export")
        check_choice("names", names, ("plain", "model"))
        return reading.export(self, self.one(name), dtype, device, names == "model", followed_only)

    def state_of(self, name: str | Mixture) -> Iterator[tuple[Followed, Tensor]]:
        """(parameter or buffer, its value in average `name`) for every tensor of the model, tied ones once."""
        values = self.values_by_id(name)
        seen: set[int] = set()
        for entry in following.entries(self.model):
            if entry.persistent and id(entry.tensor) not in seen:
                seen.add(id(entry.tensor))
                value = values.get(id(entry.tensor))
                own = tensors.local(entry.tensor.detach())
                yield Followed(entry.name, entry.tensor, entry.is_buffer), own if value is None else value

    @torch.no_grad()
    def write_back(self, name: str | Mixture | None = None) -> None:
        """Set the model's own weights to an average and train on from there (Switch EMA; SWA's last step).

        Averages and their counts stay as they are, and so does the optimiser's state.
        """
        self._refuse_while_applied("write weights back")
        values = self.values_by_id(self.one(name))
        for f, value in self.state_of(self.one(name)):
            if id(f.tensor) in values:
                tensors.local(f.tensor.detach()).copy_(value)

    def module(self, name: str | Mixture | None = None) -> nn.Module:
        """A copy of the model in eval mode that holds an average, to be called during training.

        Its forward first takes the average as it is then, if there was an update since; `averager.module().eval()`
        is safe to call from the training loop only. Needs memory for a second model.
        """
        self._refuse_while_applied("copy the model")
        return reading.module(self, self.one(name))

    def status(self, name: str | None = None, *, drift: bool = True) -> Status:
        """Where an average stands: its decay, window and the weight left on the initial weights.

        Args:
            name: may be left out if there is one average.
            drift: also ‖average − weights‖ / ‖weights‖, which reads both.
        """
        return reading.status(self, str(self.one(name)), drift)

    def weights(self, name: str | Mixture, T: int | None = None) -> np.ndarray:
        """The weight of each step in average `name` after T updates (now, if not given), as `Profile.weights`."""
        T = self.updates if T is None else T
        if name == RAW:
            raw: np.ndarray = np.eye(1, T + 1, T)[0]
            return raw
        profile = self._profile(name)
        if profile.combines:
            terms = [w * self.weights(str(other), T) for other, w in profile.read(T).items()]
            combined: np.ndarray = np.sum(terms, axis=0)
            return combined
        return profile.weights(T)

    def _profile(self, name: str | Profile) -> Profile:
        """The rule of an average, or a mixture that is not one of them. ValueError for an unknown name."""
        if isinstance(name, str):
            if name not in self._averages:
                raise ValueError(f"no average {name!r}{nearest(name, [RAW, *self._averages])}")
            return self._averages[name].profile
        self._check_combined(name, "the mixture")
        return name

    def values_by_id(self, name: str | Mixture) -> dict[int, Tensor]:
        """By `id` of the model's tensors, the values of an average; of sharded ones, this process's part."""
        self._look_for_changes()
        values = self._values(name)
        averaged = {id(f.tensor): v for f, v in zip(self.followed, values or (), strict=values is not None)}
        return averaged | self._derived(values)

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

    def _derived(self, values: Sequence[Tensor] | None) -> dict[int, Tensor]:
        """By `id` of buffers, what follows from averaged weights: the vectors of spectral normalisation."""
        derived: dict[int, Tensor] = {}
        averaged = {id(f.tensor): v for f, v in zip(self.followed, values or (), strict=values is not None)}
        for norm in self._spectral:
            weight = averaged.get(id(norm.weight))
            if weight is not None and not tensors.is_sharded(norm.weight):
                derived[id(norm.u)], derived[id(norm.v)] = kinds.power_iteration(norm, weight)
        return derived

    # -- state ------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume bit for bit: tensors (not copied) and plain values only.

        Under FSDP2 they are DTensors. `load_state_dict` takes them, or full tensors.
        """
        self._refuse_while_applied("save the averages")
        self._wait()
        if self._torn:
            raise RuntimeError(self._torn)
        return state.save(self.updates, self.followed, self._averages)

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any], strict: bool = True) -> list[str]:
        """Take back what `state_dict` gave; the averages keep the type they are held in.

        Args:
            saved: the state.
            strict: whether names, profiles, shapes and types must fit. Otherwise what fits is loaded: weights of a
                changed profile under the same name, wider types, the tensors that are in both. The rest starts from
                the model's current weights.

        Returns:
            A sentence for everything that did not fit and what became of it; empty if strict.

        Raises:
            ValueError: it does not fit and `strict` is true, or it is no such state. Nothing has changed then.
        """
        self._refuse_while_applied("load averages")
        self._wait()
        self._look_for_changes()
        if self._plan is not None:
            self._plan.reset()
        if strict:
            self.updates = state.load(saved, self.followed, self._averages)
            messages: list[str] = []
        else:
            self.updates, messages = state.load_what_fits(saved, self.followed, self._averages, self._live())
        self._torn = ""
        return messages

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `state_dict` as a safetensors file: tensors "AVERAGE/SET/NAME", the rest as JSON in its metadata."""
        state.write(self.state_dict(), path)

    def load(self, path: str | os.PathLike[str], strict: bool = True) -> list[str]:
        """Read what `save` wrote, as `load_state_dict`."""
        return self.load_state_dict(state.read(path), strict)

    def save_model(
        self,
        path: str | os.PathLike[str],
        name: str | Mixture | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Write one average as a safetensors file that any loader of the plain model reads.

        Its metadata holds {"format": "pt", "average", "profile", "updates"}; the profile as JSON.
        """
        reading.save_model(self, path, self.one(name), dtype)

    @torch.no_grad()
    def load_foreign(
        self, saved: Mapping[str, Any], name: str | None = None, *, kind: str | None = None
    ) -> list[str]:
        """Continue an average that another library kept, with its count of updates where the format has one.

        Args:
            saved: the state_dict of timm's ModelEmaV2 or V3, diffusers' EMAModel, torch's AveragedModel,
                ema-pytorch's EMA, torch-ema's ExponentialMovingAverage, latent diffusion's LitEma, a checkpoint of
                Lightning's WeightAveraging, or a plain state_dict.
            name: the average that takes it; may be left out if there is one.
            kind: the format, if it is not to be recognised: see `foreign.KINDS`.

        Returns:
            A sentence for each thing that the format did not hold or that was left out.

        Raises:
            ValueError: names or shapes do not fit, or the format is not recognised. Nothing has changed then.
        """
        from emabench.averaging import foreign

        self._refuse_while_applied("load averages")
        self._wait()
        return foreign.load(self, saved, str(self.one(name)), kind)

    def to(self, device: torch.device | str) -> Averager:
        """Move the averages, after the model has moved. Returns the averager."""
        self._refuse_while_applied("move the averages")
        self._wait()
        if self._offload:
            raise ValueError(f"to({str(device)!r}): offloaded averages stay on the CPU")
        for one in [*self._sets, *(c for c in self._compensation if c is not None)]:
            one[:] = [t.to(device) for t in one]
        self._plan = None
        return self


def _named(profiles: Profiles | Mapping[str, Profiles]) -> Mapping[str, Profiles]:
    """A rule alone, under the name of its kind; else the mapping as it is."""
    if isinstance(profiles, Profile):
        return {profiles.kind: profiles}
    if not isinstance(profiles, Mapping):
        raise ValueError(
            f"profiles={profiles!r}: give a profile, like EMA(decay=0.999), or a mapping from names to profiles"
        )
    if isinstance(profiles.get("kind"), str):
        return {str(profiles["kind"]): profiles}
    return profiles
