"""The saved form of an averager: written from it, checked against it, read back into it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from emabench.averaging import safetensors, tensors
from emabench.averaging.average import Average
from emabench.averaging.profiles import from_dict
from emabench.averaging.tensors import Followed

FORMAT = 2
_RENAMED = {
    "acts": "updates_done",
    "log_kept": "log_initial_weight",
    "lost": "compensation",
}  # since format 1


def save(updates: int, followed: Sequence[Followed], averages: Mapping[str, Average]) -> dict[str, Any]:
    """{"format", "updates", "averages": {name: {"profile", "updates_done", "log_initial_weight", "weights",
    "compensation"}}}.

    weights: a mapping from tensor names for every set that holds something (k sets for LAWA, none before the
    average starts); compensation: likewise, the bits that compensated summation carries.
    """

    def named(values: Sequence[Tensor]) -> dict[str, Tensor]:
        return {f.name: tensors.like(f.tensor, v) for f, v in zip(followed, values, strict=True)}

    return {
        "format": FORMAT,
        "updates": updates,
        "averages": {
            name: {
                "profile": average.profile.to_dict(),
                "updates_done": average.updates_done,
                "log_initial_weight": list(average.stepper.state),
                "weights": [named(values) for values in average.sets[: average.profile.sets_in_use(updates)]],
                "compensation": named(average.compensation) if average.compensation else {},
            }
            for name, average in averages.items()
        },
    }


def load(saved: Mapping[str, Any], followed: Sequence[Followed], averages: Mapping[str, Average]) -> int:
    """Copy `saved` into `averages`; the number of updates. ValueError, nothing changed, for what does not fit."""
    updates, given = _opened(saved)
    if set(given) != set(averages):
        raise ValueError(f"the state holds averages {sorted(given)}, this averager {sorted(averages)}")
    copies: list[tuple[Tensor, Tensor]] = []
    for name, average in averages.items():
        copies += _matched(name, average, given[name], followed, updates)
    for name, average in averages.items():
        average.updates_done = int(given[name]["updates_done"])
        average.stepper.state = [float(x) for x in given[name]["log_initial_weight"]]
    for target, source in copies:
        target.copy_(source)
    return updates


def load_what_fits(
    saved: Mapping[str, Any],
    followed: Sequence[Followed],
    averages: Mapping[str, Average],
    live: Sequence[Tensor],
) -> tuple[int, list[str]]:
    """Copy what of `saved` fits; what does not starts from `live`. (number of updates, what did not fit, in words)."""
    updates, given = _opened(saved)
    messages = [
        f"average {name!r} of the state is not one of this averager's"
        for name in given
        if name not in averages
    ]
    for name, average in averages.items():
        same = True
        if name not in given:
            messages.append(f"average {name!r} is not in the state: it starts from the current weights")
            state: Mapping[str, Any] = {"weights": [], "updates_done": 0, "log_initial_weight": []}
        else:
            state = given[name]
            same = from_dict(state["profile"]) == average.profile
            if not same:
                was, is_now = state["profile"], average.profile.to_dict()
                messages.append(f"average {name!r} was {was} and is {is_now} now: its weights are kept")
        weights, profile = list(state["weights"]), average.profile
        in_use = average.sets[: profile.sets_in_use(updates)]
        if weights and len(weights) != len(in_use):
            messages.append(
                f"average {name!r}: {len(weights)} sets of weights in the state, {len(in_use)} here"
            )
        for i, targets in enumerate(in_use):
            sources = weights[min(i, len(weights) - 1)] if weights else {}
            for f, target, value in zip(followed, targets, live, strict=True):
                source = tensors.local_part(f.tensor, sources[f.name]) if f.name in sources else None
                if source is None or source.shape != target.shape:
                    why = (
                        "is not in the state"
                        if source is None
                        else f"has shape {tuple(source.shape)} in the state"
                    )
                    if weights and i == 0:
                        messages.append(
                            f"average {name!r}: {f.name!r} {why} and starts from the current weights"
                        )
                    source = value
                target.copy_(source)
            if i == 0:
                names = {f.name for f in followed}
                messages += [
                    f"average {name!r}: {key!r} of the state is not followed"
                    for key in sources
                    if key not in names
                ]
        if average.compensation:
            for f, target in zip(followed, average.compensation, strict=True):
                low = state.get("compensation", {}).get(f.name)
                low = None if low is None else tensors.local_part(f.tensor, low)
                target.copy_(low) if low is not None and low.shape == target.shape else target.zero_()
        average.updates_done = profile.updates_done(updates)
        logs = [float(x) for x in state["log_initial_weight"]]
        fits = (
            same and len(logs) == len(average.stepper.state) and state["updates_done"] == average.updates_done
        )
        average.stepper.state = logs if fits else average.stepper.state_after(average.updates_done)
    return updates, messages


def _opened(saved: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
    """(number of updates, the averages in the words of the present format). ValueError if it is no such state."""
    if not isinstance(saved, Mapping) or not {"format", "updates", "averages"} <= set(saved):
        raise ValueError("not a state of an Averager: give what its state_dict returned")
    if saved["format"] not in (1, FORMAT):
        raise ValueError(f"a state of another format of Averager: {saved['format']!r}, expected {FORMAT}")
    given = saved["averages"]
    if saved["format"] == 1:
        given = {n: {_RENAMED.get(key, key): value for key, value in a.items()} for n, a in given.items()}
    return int(saved["updates"]), given


def write(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """A state as a safetensors file; see `Averager.save`."""
    flat: dict[str, Tensor] = {}
    rest = {"format": state["format"], "updates": state["updates"], "averages": {}}
    for name, average in state["averages"].items():
        if "/" in name:
            raise ValueError(f"average {name!r}: a file's names have no '/' in them; rename it to save it")
        sets = {str(i): one for i, one in enumerate(average["weights"])}
        for part, one in [*sets.items(), ("compensation", average["compensation"])]:
            flat |= {f"{name}/{part}/{key}": value for key, value in one.items()}
        plain = {key: value for key, value in average.items() if key not in ("weights", "compensation")}
        rest["averages"][name] = {**plain, "sets": len(sets)}
    # JSON has no infinities, and Python's own words for them are understood by Python alone.
    safetensors.save(path, flat, {"emabench": json.dumps(_finite(rest))})


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state that `write` wrote."""
    flat, metadata = safetensors.load(path)
    if "emabench" not in metadata:
        raise ValueError(f"{path}: not a state of an Averager: give a file that its save wrote")
    state: dict[str, Any] = json.loads(metadata["emabench"])
    for name, average in state["averages"].items():
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in flat.items():
            of, _, rest = key.partition("/")
            part, _, tensor = rest.partition("/")
            if of == name:
                parts.setdefault(part, {})[tensor] = value
        average["weights"] = [parts.get(str(i), {}) for i in range(average.pop("sets"))]
        average["compensation"] = parts.get("compensation", {})
        average["log_initial_weight"] = [float(x) for x in average["log_initial_weight"]]
    return state


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, (list, tuple)) else value


def _matched(
    name: str, average: Average, given: Mapping[str, Any], followed: Sequence[Followed], updates: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(own tensor, saved tensor) for everything that the average holds."""
    if from_dict(given["profile"]) != average.profile:
        raise ValueError(f"average {name!r} was {given['profile']}, it is {average.profile.to_dict()} now")
    in_use = average.sets[: average.profile.sets_in_use(updates)]
    if len(given["weights"]) != len(in_use):
        raise ValueError(
            f"average {name!r}: the state holds {len(given['weights'])} sets of weights, not {len(in_use)}"
        )
    if bool(given["compensation"]) != bool(average.compensation):
        was, is_now = ("with", "without") if given["compensation"] else ("without", "with")
        raise ValueError(f"average {name!r} was kept {was} compensation, it is {is_now} now")
    names = [f.name for f in followed]
    pairs = [*zip(in_use, given["weights"], strict=True)]
    if average.compensation:
        pairs.append((average.compensation, given["compensation"]))
    for targets, sources in pairs:
        for key in [*(k for k in names if k not in sources), *(k for k in sources if k not in names)]:
            raise ValueError(
                f"average {name!r}: the state {'lacks' if key in names else 'has the unknown'} tensor {key!r}"
            )
        for f, target in zip(followed, targets, strict=True):
            key, source = f.name, tensors.local_part(f.tensor, sources[f.name])
            if source.shape != target.shape:
                has, fits = tuple(source.shape), tuple(target.shape)
                raise ValueError(f"average {name!r}: {key!r} has shape {has} in the state, {fits} here")
            if torch.promote_types(source.dtype, target.dtype) != target.dtype:
                raise ValueError(
                    f"average {name!r}: {key!r} is {source.dtype} in the state and would be narrowed to "
                    f"{target.dtype}; make the averager with dtype={source.dtype}"
                )
            yield target, source
