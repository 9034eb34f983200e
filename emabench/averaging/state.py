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

FORMAT = 1


def save(updates: int, followed: Sequence[Followed], averages: Mapping[str, Average]) -> dict[str, Any]:
    """{"format", "updates", "averages": {name: {"profile", "acts", "log_kept", "weights", "lost"}}}.

    weights: a mapping from tensor names for every set that holds something (k sets for LAWA, none before the
    average begins); lost: likewise, what compensated summation carries.
    """

    def named(values: Sequence[Tensor]) -> dict[str, Tensor]:
        return {f.name: tensors.like(f.tensor, v) for f, v in zip(followed, values, strict=True)}

    return {
        "format": FORMAT,
        "updates": updates,
        "averages": {
            name: {
                "profile": average.profile.to_dict(),
                "acts": average.acts,
                "log_kept": list(average.log_kept),
                "weights": [named(values) for values in _filled(average, average.acts, updates)],
                "lost": named(average.lost) if average.lost else {},
            }
            for name, average in averages.items()
        },
    }


def load(saved: Mapping[str, Any], followed: Sequence[Followed], averages: Mapping[str, Average]) -> int:
    """Copy `saved` into `averages`; the number of updates. ValueError, nothing changed, for what does not fit."""
    if not isinstance(saved, Mapping) or not {"format", "updates", "averages"} <= set(saved):
        raise ValueError("not a state of an Averager: give what its state_dict returned")
    if saved["format"] != FORMAT:
        raise ValueError(f"a state of another format of Averager: {saved['format']!r}, expected {FORMAT}")
    given, updates = saved["averages"], int(saved["updates"])
    if set(given) != set(averages):
        raise ValueError(f"the state holds averages {sorted(given)}, this averager {sorted(averages)}")
    copies: list[tuple[Tensor, Tensor]] = []
    for name, average in averages.items():
        copies += _matched(name, average, given[name], followed, updates)
    for name, average in averages.items():
        average.acts = int(given[name]["acts"])
        average.log_kept = [float(x) for x in given[name]["log_kept"]]
    for target, source in copies:
        target.copy_(source)
    return updates


def _filled(average: Average, acts: int, updates: int) -> list[list[Tensor]]:
    return average.slots[: max(acts, 1)] if average.profile.begun(updates) else []


def _matched(
    name: str, average: Average, given: Mapping[str, Any], followed: Sequence[Followed], updates: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(own tensor, saved tensor) for everything that the average holds."""
    if from_dict(given["profile"]) != average.profile:
        raise ValueError(f"average {name!r} was {given['profile']}, it is {average.profile.to_dict()} now")
    filled = _filled(average, int(given["acts"]), updates)
    if len(given["weights"]) != len(filled):
        raise ValueError(
            f"average {name!r}: the state holds {len(given['weights'])} sets of weights, not {len(filled)}"
        )
    if bool(given["lost"]) != bool(average.lost):
        was, is_now = ("with", "without") if given["lost"] else ("without", "with")
        raise ValueError(f"average {name!r} was kept {was} compensation, it is {is_now} now")
    names = [f.name for f in followed]
    pairs = [*zip(filled, given["weights"], strict=True)]
    if average.lost:
        pairs.append((average.lost, given["lost"]))
    for targets, sources in pairs:
        for key in [*(k for k in names if k not in sources), *(k for k in sources if k not in names)]:
            raise ValueError(
                f"average {name!r}: the state {'lacks' if key in names else 'has the unknown'} tensor {key!r}"
            )
        for f, target in zip(followed, targets, strict=True):
            key, source = f.name, tensors.cut(f.tensor, sources[f.name])
            if source.shape != target.shape:
                has, fits = tuple(source.shape), tuple(target.shape)
                raise ValueError(f"average {name!r}: {key!r} has shape {has} in the state, {fits} here")
            if torch.promote_types(source.dtype, target.dtype) != target.dtype:
                raise ValueError(
                    f"average {name!r}: {key!r} is {source.dtype} in the state and would be narrowed to "
                    f"{target.dtype}; make the averager with dtype={source.dtype}"
                )
            yield target, source
