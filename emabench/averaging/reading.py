"""What is read of averages: their values, a state_dict, a file, a second model, and where an average stands."""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from emabench.averaging import safetensors, tensors
from emabench.averaging.copying import Settings, copy_model
from emabench.averaging.following import entries, extra_states
from emabench.averaging.mixture import Mixture
from emabench.averaging.profiles import window_of
from emabench.averaging.values import Values


@dataclass(frozen=True)
class Status:
    """Where an average stands.

    updates: how often the averager was updated; started: whether the average is something else than the current
    weights; decay: of its latest change, 1 − alpha (None before the first, or if it differs between tensors);
    window: mean age of the weights in it + 1, in updates (`profiles.window_of`); half_life: age within which half of the weight lies;
    initial_weight: weight left on the weights it started from; drift: ‖average − weights‖ / ‖weights‖ over the
    averaged parameters. What the profile cannot tell (it depends on gradients) is None.
    """

    updates: int
    started: bool
    decay: float | None
    window: float | None
    half_life: float | None
    initial_weight: float | None
    drift: float | None


def export(
    averages: Values,
    name: str | Mixture,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    own_names: bool,
    followed_only: bool,
) -> dict[str, Any]:
    """See `Averager.export`."""
    values = averages.by_id(name)
    followed = {id(f.tensor) for f in averages.tracked.followed}
    exported: dict[str, Any] = {}
    for entry in entries(averages.tracked.model):
        tensor = entry.tensor
        if not entry.persistent or (followed_only and id(tensor) not in followed):
            continue
        own = tensors.shadow_dtype(tensor, dtype) if dtype and tensors.averageable(tensor) else tensor.dtype
        value = tensors.like(tensor, values.get(id(tensor)))
        exported[entry.own_name if own_names else entry.name] = _copied(value, device or tensor.device, own)
    if not followed_only:
        for plain, own_name, extra in extra_states(averages.tracked.model):
            exported[own_name if own_names else plain] = extra
    return exported


def _copied(value: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    if tensors.is_sharded(value) or value.layout != torch.strided:
        return value.to(device, dtype, copy=True)
    return value.to(device, dtype, copy=True, memory_format=torch.contiguous_format)


def save_model(
    averages: Values, path: str | os.PathLike[str], name: str | Mixture, dtype: torch.dtype | None
) -> None:
    """See `Averager.save_model`."""
    state = export(averages, name, dtype, "cpu", own_names=False, followed_only=False)
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{key!r} is a {type(value).__name__}, and safetensors holds tensors: use export and torch.save"
            )
    average = averages.updates.averages.get(name) if isinstance(name, str) else None
    metadata = {
        "format": "pt",
        "average": str(name),
        "profile": json.dumps(average.profile.to_dict() if average else str(name)),
        "updates": str(averages.updates.count),
    }
    safetensors.save(path, state, metadata)


def module(averages: Values, name: str | Mixture) -> nn.Module:
    """See `Averager.module`."""
    if averages.tracked.sharded:
        raise ValueError(
            "a sharded model has no copy in one process: export the average and load it where it is served"
        )
    source = _unwrapped(averages.tracked.model)
    copied = copy_model(source).eval().requires_grad_(False)
    refresh = _Refresh(averages, name, source, copied)
    refresh(copied)
    copied.register_forward_pre_hook(refresh)
    return copied


def _unwrapped(model: nn.Module) -> nn.Module:
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]  # type: ignore[assignment]
        else:
            return model


class _Refresh:
    """Before a forward: the copy takes the average if there was an update since. A copy of the copy stays as it is."""

    def __init__(self, averages: Values, name: str | Mixture, source: nn.Module, target: nn.Module) -> None:
        self._averages, self._name, self._updates = weakref.ref(averages), name, -1
        self._settings = Settings(source, target)
        self._tensors = {e.name: e.tensor for e in entries(target)}

    @torch.no_grad()
    def __call__(self, module: nn.Module, args: Any = ()) -> None:
        averages = self._averages()
        if averages is None or averages.updates.count == self._updates:
            return
        if len(self._tensors) and any(e.tensor is not self._tensors.get(e.name) for e in entries(module)):
            self._tensors = {e.name: e.tensor for e in entries(module)}  # it was converted
        self._settings.take_over()
        for f, value in averages.of_model(self._name):
            self._tensors[f.name].copy_(value)
        self._updates = averages.updates.count

    def __deepcopy__(self, memo: Any) -> _Stays:
        return _Stays()

    def __reduce__(self) -> tuple[type[_Stays], tuple[()]]:
        return _Stays, ()


class _Stays:
    """What is left of `_Refresh` in a copy or a file of the module: nothing is refreshed."""

    def __call__(self, module: nn.Module, args: Any) -> None:
        return None


def status(averages: Values, name: str, drift: bool) -> Status:
    """See `Averager.status`."""
    average, t = averages.average(name), averages.updates.count
    described: dict[str, float] = {}
    try:
        if not average.profile.combines:
            described = average.profile.describe(t)
    except ValueError:  # it depends on the gradients
        described = {}
    return Status(
        updates=t,
        started=average.profile.started(t),
        decay=average.decay,
        window=window_of(described),
        half_life=described.get("half_life"),
        initial_weight=described.get("start_weight"),
        drift=_drift(averages, name) if drift else None,
    )


@torch.no_grad()
def _drift(averages: Values, name: str) -> float:
    """‖average − weights‖ / ‖weights‖; of shards, those of this process."""

    def squares() -> Iterator[tuple[float, float]]:
        for f, value in averages.of_model(name):
            if not f.is_buffer and tensors.averageable(f.tensor):
                live = tensors.local(f.tensor.detach()).to(value.device, value.dtype)
                yield float((value - live).norm()) ** 2, float(live.norm()) ** 2

    moved, size = map(math.fsum, zip(*squares(), strict=True))
    return math.sqrt(moved / size) if size else 0.0
