"""States of other libraries' averages, to continue with one of them here.

Each format is a function from the state to `Foreign`: the weights by name (or in the order of the model's
parameters) and the number of updates where it is kept. Verified against the libraries themselves by the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from emabench.averaging import tensors
from emabench.averaging._checks import check_choice
from emabench.averaging.following import entries
from emabench.averaging.values import Values


@dataclass(frozen=True)
class Foreign:
    """weights: by name, or in the order of `model.parameters()`; updates: made so far, None if not kept;
    decay: the final decay, None if not kept; without_dots: names come without their dots (LitEma)."""

    weights: Mapping[str, Tensor] | Sequence[Tensor]
    updates: int | None = None
    decay: float | None = None
    without_dots: bool = False


def _torch(state: Mapping[str, Any]) -> Foreign | None:
    """torch.optim.swa_utils.AveragedModel: its first call copies, and counts."""
    if "n_averaged" not in state:
        return None
    return Foreign(_below(state, "module."), int(state["n_averaged"]))


def _lightning(state: Mapping[str, Any]) -> Foreign | None:
    """A checkpoint of Lightning's WeightAveraging callbacks (EMAWeightAveraging among them)."""
    if "averaging_state" not in state:
        return None
    return Foreign(state["state_dict"], int(state["averaging_state"].get("n_averaged", 0)))


def _diffusers(state: Mapping[str, Any]) -> Foreign | None:
    if not {"shadow_params", "optimization_step"} <= set(state):
        return None
    return Foreign(state["shadow_params"], int(state["optimization_step"]), float(state["decay"]))


def _torch_ema(state: Mapping[str, Any]) -> Foreign | None:
    if not {"shadow_params", "num_updates"} <= set(state):
        return None
    count = state["num_updates"]
    return Foreign(state["shadow_params"], None if count is None else int(count), float(state["decay"]))


def _ema_pytorch(state: Mapping[str, Any]) -> Foreign | None:
    if "initted" not in state:
        return None
    return Foreign(_below(state, "ema_model."), int(state["step"]))


def _lit_ema(state: Mapping[str, Any]) -> Foreign | None:
    """Latent diffusion's LitEma, by itself or inside a checkpoint under "model_ema."."""
    state = state.get("state_dict", state)
    if "model_ema.num_updates" in state:
        state = _below(state, "model_ema.")
    if not {"decay", "num_updates"} <= set(state) or "shadow_params" in state:
        return None
    count = int(state["num_updates"])
    weights = {key: value for key, value in state.items() if key not in ("decay", "num_updates")}
    return Foreign(weights, count if count >= 0 else None, float(state["decay"]), without_dots=True)


def _timm(state: Mapping[str, Any]) -> Foreign | None:
    """ModelEmaV2 and V3: their own state_dict, that of `.module`, or a training checkpoint's "state_dict_ema"."""
    weights = state.get("state_dict_ema", state)
    if weights and all(isinstance(key, str) and key.startswith("module.") for key in weights):
        return Foreign(_below(weights, "module."))
    return Foreign(weights) if weights is not state else None


def _plain(state: Mapping[str, Any]) -> Foreign | None:
    """A state_dict of the averaged model."""
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        return None
    return Foreign(state)


KINDS: dict[str, Callable[[Mapping[str, Any]], Foreign | None]] = {
    "torch": _torch,
    "lightning": _lightning,
    "diffusers": _diffusers,
    "torch_ema": _torch_ema,
    "ema_pytorch": _ema_pytorch,
    "litema": _lit_ema,
    "timm": _timm,
    "state_dict": _plain,
}
"""By name, the formats in the order in which they are recognised."""


def _below(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def read(saved: Mapping[str, Any], kind: str | None = None) -> tuple[str, Foreign]:
    """(format, content) of a state. ValueError if it is of none, or not of the format that is named."""
    if not isinstance(saved, Mapping):
        raise ValueError(
            f"a {type(saved).__name__} is no state: give the mapping that state_dict() or torch.load returned"
        )
    if kind is not None:
        check_choice("kind", kind, KINDS)
    for name, reader in KINDS.items():
        if kind in (None, name):
            content = reader(saved)
            if content is not None:
                return name, content
    raise ValueError(
        f"the state, with keys {[*saved][:5]}, is not of {'any known format' if kind is None else f'the format {kind!r}'}: "
        f"known are {', '.join(KINDS)}"
    )


def load(values: Values, saved: Mapping[str, Any], name: str, kind: str | None) -> list[str]:
    """See `Averager.load_foreign`."""
    updated, tracked = values.updates, values.tracked
    average = values.average(name)
    profile = average.profile
    if not profile.is_its_set:
        raise ValueError(
            f"average {name!r} is of kind {profile.kind!r}, which one set of weights does not determine"
        )
    known, content = read(saved, kind)
    weights = _by_name(tracked.model, content)
    messages, sources = [], []
    for f, own, live in zip(tracked.followed, average.sets[0], tracked.live(), strict=True):
        source = weights.get(f.name)
        if source is None:
            if not f.is_buffer:
                raise ValueError(f"the {known} state lacks {f.name!r}; it has {', '.join([*weights][:3])}, …")
            messages.append(f"buffer {f.name!r} is not in the state: it starts from the current value")
            sources.append(live)
            continue
        source = tensors.local_part(f.tensor, source)
        if source.shape != own.shape:
            raise ValueError(
                f"{f.name!r} has shape {tuple(source.shape)} in the {known} state, {tuple(own.shape)} here"
            )
        sources.append(source)
    updates = content.updates
    if updates is None:
        updates = max(updated.count, int(profile.start))
        messages.append(f"the {known} format keeps no count of updates: it stays {updates}")
    if not profile.started(updates):
        updates = int(profile.start) + profile.every
        messages.append(
            f"the state has too few updates for the average to have started: counted as {updates}"
        )
    decay = getattr(profile, "decay", None)
    if content.decay is not None and decay is not None and abs(decay - content.decay) > 1e-6:
        messages.append(
            f"the state was kept with decay {content.decay:g}, the average has {decay:g} from now on"
        )
    for own, source in zip(average.sets[0], sources, strict=True):
        own.copy_(source)
    for low in average.compensation or ():
        low.zero_()
    others = [other for other in updated.averages if other != name]
    if updates != updated.count and others:
        messages.append(
            f"the count of updates is {updates} now for all averages; {', '.join(others)} keep their weights"
        )
    updated.count = updates
    for one in updated.averages.values():
        one.updates_done = one.profile.updates_done(updates)
        one.stepper.state = one.stepper.state_after(one.updates_done)
    return messages


def _by_name(model: nn.Module, content: Foreign) -> Mapping[str, Tensor]:
    """The weights under the plain names of the model."""
    names: dict[int, str] = {}
    for entry in entries(model):
        names.setdefault(id(entry.tensor), entry.name)
    if isinstance(content.weights, Mapping):
        plain = {
            key.removeprefix("module.").removeprefix("_orig_mod."): v for key, v in content.weights.items()
        }
        weights = {**plain, **content.weights}
        if content.without_dots:
            return {
                name: weights[name.replace(".", "")]
                for name in names.values()
                if name.replace(".", "") in weights
            }
        return {
            first: weights[e.name]
            for e in entries(model)
            if (first := names[id(e.tensor)]) and e.name in weights
        }
    parameters = list(model.parameters())
    if len(parameters) != len(content.weights):
        trained = [p for p in parameters if p.requires_grad]
        if len(trained) != len(content.weights):
            raise ValueError(
                f"the state has {len(content.weights)} tensors in order, the model {len(parameters)} parameters, of which "
                f"{len(trained)} are trained"
            )
        parameters = trained
    return {names[id(p)]: torch.as_tensor(w) for p, w in zip(parameters, content.weights, strict=True)}
