"""The engine: K averages of one model's weights, carried along its training."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from emabench.averaging import attaching, following, foreign, reading, state, tensors
from emabench.averaging._checks import check_choice
from emabench.averaging.attaching import Attachment
from emabench.averaging.average import Average, Profiles, make_averages
from emabench.averaging.mixture import Mixture
from emabench.averaging.profiles import Profile
from emabench.averaging.reading import Status
from emabench.averaging.tensors import Followed
from emabench.averaging.tracked import TrackedModel
from emabench.averaging.updating import Updates
from emabench.averaging.values import Values


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
        rules = following.rules(buffers, parameters or {}, frozen)
        check_choice("new", new, ("refuse", "follow"))
        check_choice("rounding", rounding, ("nearest", "stochastic"))
        if rounding == "stochastic" and (dtype != torch.bfloat16 or compensated):
            raise ValueError(
                f"rounding='stochastic' with dtype={dtype}, compensated={compensated!r}: it is for averages in "
                "bfloat16 without compensation; pass dtype=torch.bfloat16, or leave rounding out"
            )
        self._tracked = TrackedModel(model, rules)
        self._averages = make_averages(
            profiles,
            self._tracked.followed,
            own_profiles=following.own_profiles(rules.parameter_patterns),
            compensated=compensated,
            dtype=dtype,
            on_cpu=offload,
        )
        self._updates = Updates(
            self._tracked,
            self._averages,
            new=new,
            dtype=dtype,
            rounding=rounding,
            check_finite=check_finite,
            offload=offload,
        )
        self._values = Values(self._updates)
        self._attached: Attachment | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For copy.deepcopy and pickle, which copy the model along: all but the optimisers."""
        self._tracked.refuse_while_applied("copy the averager")
        self._updates.wait()
        return {**self.__dict__, "_attached": None}

    # -- what is followed -------------------------------------------------------------------------------------
    @property
    def model(self) -> nn.Module:
        """The model that is averaged."""
        return self._tracked.model

    @property
    def followed(self) -> list[Followed]:
        """The parameters and buffers that are averaged, each tensor once; all sets of tensors have this order."""
        return self._tracked.followed

    @property
    def updates(self) -> int:
        """Updates so far."""
        return self._updates.count

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
        return self._tracked.sharded

    @property
    def arithmetic(self) -> str:
        """What computes the updates: "c", "triton" or "torch"; they differ in the last bits of their results."""
        return self._updates.arithmetic

    @property
    def averages(self) -> Mapping[str, Average]:
        """By name, each average's rule, progress and tensors; for reading and writing states."""
        return self._averages

    def live(self) -> list[Tensor]:
        """The model's tensors in the order of `followed`; of sharded ones, this process's part."""
        return self._tracked.live()

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
        self._tracked.refuse_while_applied("follow the model")
        return self._updates.follow()

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
        if self._attached is not None and not self._attached.removed:
            raise RuntimeError(
                "the averager is attached to an optimiser, whose steps update it: a call to update() would count "
                "them twice; call .remove() on what attach() returned first"
            )
        self._updates.update(step)

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
        present = self._attached if self._attached and not self._attached.removed else None
        self._attached = attaching.attach(self._updates, optimizers, present)
        return self._attached

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
        self._tracked.refuse_while_applied("apply another average")
        self._updates.look_for_changes()
        name = self._values.one(name)
        with self._updates.memory_kept(), self._tracked.applied(str(name), self._values.of(name)):
            yield self.model

    @property
    def applied_name(self) -> str | None:
        """The average that the model holds now; None outside a block of `applied`."""
        return self._tracked.applied_name

    def one(self, name: str | Mixture | None) -> str | Mixture:
        """`name`, or that of the only average if it is None."""
        return self._values.one(name)

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
        self._tracked.refuse_while_applied("export")
        check_choice("names", names, ("plain", "model"))
        return reading.export(self._values, self.one(name), dtype, device, names == "model", followed_only)

    def state_of(self, name: str | Mixture) -> Iterator[tuple[Followed, Tensor]]:
        """(parameter or buffer, its value in average `name`) for every tensor of the model, tied ones once."""
        return self._values.of_model(name)

    @torch.no_grad()
    def write_back(self, name: str | Mixture | None = None) -> None:
        """Set the model's own weights to an average and train on from there (Switch EMA; SWA's last step).

        Averages and their counts stay as they are, and so does the optimiser's state.
        """
        self._tracked.refuse_while_applied("write weights back")
        values = self._values.by_id(self.one(name))
        for f, value in self.state_of(self.one(name)):
            if id(f.tensor) in values:
                tensors.local(f.tensor.detach()).copy_(value)

    def module(self, name: str | Mixture | None = None) -> nn.Module:
        """A copy of the model in eval mode that holds an average, to be called during training.

        Its forward first takes the average as it is then, if there was an update since; `averager.module().eval()`
        is safe to call from the training loop only. Needs memory for a second model.
        """
        self._tracked.refuse_while_applied("copy the model")
        return reading.module(self._values, self.one(name))

    def status(self, name: str | None = None, *, drift: bool = True) -> Status:
        """Where an average stands: its decay, window and the weight left on the initial weights.

        Args:
            name: may be left out if there is one average.
            drift: also ‖average − weights‖ / ‖weights‖, which reads both.
        """
        return reading.status(self._values, str(self.one(name)), drift)

    def weights(self, name: str | Mixture, T: int | None = None) -> np.ndarray:
        """The weight of each step in average `name` after T updates (now, if not given), as `Profile.weights`."""
        return self._values.weights(name, T)

    # -- state ------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume bit for bit: tensors (not copied) and plain values only.

        Under FSDP2 they are DTensors. `load_state_dict` takes them, or full tensors.
        """
        self._tracked.refuse_while_applied("save the averages")
        self._updates.wait()
        self._updates.refuse_if_torn()
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
        self._tracked.refuse_while_applied("load averages")
        self._updates.wait()
        self._updates.look_for_changes()
        messages: list[str] = []
        if strict:
            updates = state.load(saved, self.followed, self._averages)
        else:
            updates, messages = state.load_what_fits(saved, self.followed, self._averages, self.live())
        self._updates.reloaded(updates)
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
        reading.save_model(self._values, path, self.one(name), dtype)

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
        self._tracked.refuse_while_applied("load averages")
        self._updates.wait()
        return foreign.load(self._values, saved, str(self.one(name)), kind)

    def to(self, device: torch.device | str) -> Averager:
        """Move the averages, after the model has moved. Returns the averager."""
        self._tracked.refuse_while_applied("move the averages")
        self._updates.to(device)
        return self
