"""The saved form of an averager: written from it, checked against it, read back into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emabench.averaging import tensors
from emabench.averaging.profiles import from_dict
from emabench.averaging.tensors import Followed

if TYPE_CHECKING:
    from emabench.averaging.averager import Average

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
    if not isinstance(saved, Mapping) or not {"format", "updates", "averages"} <= set(saved):
        raise ValueError("not a state of an Averager: give what its state_dict returned")
    if saved["format"] not in (1, FORMAT):
        raise ValueError(f"a state of another format of Averager: {saved['format']!r}, expected {FORMAT}")
    given, updates = saved["averages"], int(saved["updates"])
    if saved["format"] == 1:
        given = {n: {_RENAMED.get(key, key): value for key, value in a.items()} for n, a in given.items()}
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
