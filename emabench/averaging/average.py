"""One average: its rule, its tensors, and the moves that it makes at an update."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emabench.averaging._checks import nearest
from emabench.averaging.kernels import Move
from emabench.averaging.layers import PerLayer
from emabench.averaging.profiles import RAW, GradientNorms, Profile, Stepper, from_dict
from emabench.averaging.tensors import Followed, empty_average

Profiles = Profile | Mapping[str, Any]


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

    @property
    def progress(self) -> tuple[int, list[float]]:
        """updates_done and the stepper's state: what an update that fails takes back."""
        return self.updates_done, self.stepper.state

    @progress.setter
    def progress(self, progress: tuple[int, list[float]]) -> None:
        self.updates_done, self.stepper.state = progress

    def initial_copies(self, updates: Sequence[int]) -> list[Move]:
        """The sets that start as copies of the weights of one of these very updates."""
        tensors = len(self.sets[0]) if self.sets else 0
        return [
            Move(self.first_set + i, [1.0] * tensors) for t in updates for i in self.stepper.initial_copies(t)
        ]

    def moves(self, t: int, gradient_norms: GradientNorms) -> list[Move]:
        """The moves up to update t; after missed steps, those of one set make one move."""
        moves: list[Move] = []
        for k in range(self.updates_done + 1, self.profile.updates_done(t) + 1):
            self.updates_done = k
            for s in self.stepper.step(k, gradient_norms):
                source = None if s.source is None else self.first_set + s.source
                moves.append(Move(self.first_set + s.set, s.alphas, source))
        for move in moves[:1]:
            alpha = move.alphas[0]
            self.decay = 1.0 - alpha if move.alphas.count(alpha) == len(move.alphas) else None
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


def make_averages(
    profiles: Profiles | Mapping[str, Profiles],
    followed: Sequence[Followed],
    *,
    own_profiles: Mapping[str, Profile],
    compensated: bool | Collection[str],
    dtype: torch.dtype | None,
    on_cpu: bool,
) -> dict[str, Average]:
    """The averages that `Averager` is asked for, by name, with memory that is not written yet.

    own_profiles: the rules of parameters that have one of their own, by name pattern.
    """
    named = _named(profiles)
    kahan = set(named if compensated is True else compensated or ())
    for name in kahan - set(named):
        raise ValueError(f"compensated={name!r} is none of the averages{nearest(name, named)}")
    averages: dict[str, Average] = {}
    sets_so_far = 0
    for name, rule in named.items():
        profile, stepper = _checked(name, from_dict(rule), [f.name for f in followed], own_profiles)
        if profile.needs_compensation and name not in kahan:
            warnings.warn(
                f"average {name!r}: above decay .99999 float32 loses steps; pass compensated=True "
                "(in a run: ema.compensated=true)",
                stacklevel=3,
            )
        sets = [[empty_average(f.tensor, dtype, on_cpu) for f in followed] for _ in range(profile.sets)]
        compensation = [torch.zeros_like(s) for s in sets[0]] if name in kahan and len(sets) == 1 else None
        averages[name] = Average(profile, stepper, sets, compensation, sets_so_far)
        sets_so_far += len(sets)
    for name, average in averages.items():
        check_combined(average.profile, name, averages)
    return averages


def check_combined(profile: Profile, name: str, averages: Mapping[str, Average]) -> None:
    """ValueError if a mixture takes what is no average, or itself a mixture."""
    known = [RAW, *(n for n, a in averages.items() if not a.profile.combines)]
    for other in profile.combines:
        if other not in known:
            raise ValueError(f"{name!r} mixes {other!r}, which is no average to mix{nearest(other, known)}")


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


def _checked(
    name: str, profile: Profile, tensors: Sequence[str], own_profiles: Mapping[str, Profile]
) -> tuple[Profile, Stepper]:
    if name == RAW:
        raise ValueError(f"average {RAW!r}: that name means the current weights; choose another")
    if not isinstance(name, str):
        raise ValueError(f"average {name!r}: give its name as a string")
    profile._require_bound()
    try:
        if own_profiles and not profile.combines:
            profile = PerLayer.with_rules(profile, own_profiles)
        return profile, profile.stepper(tensors)
    except ValueError as error:
        raise ValueError(f"average {name!r}: {error}") from None
