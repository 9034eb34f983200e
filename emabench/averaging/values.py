"""The values of averages: a set that an update keeps, or what is put together of several when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from emabench.averaging import following, tensors
from emabench.averaging._checks import nearest
from emabench.averaging.average import Average, check_combined
from emabench.averaging.mixture import Mixture
from emabench.averaging.profiles import RAW, Profile
from emabench.averaging.tensors import Followed
from emabench.averaging.updating import Updates


class Values:
    """Reads the averages that `updates` keeps. A name may be that of an average, "raw", or a mixture."""

    def __init__(self, updates: Updates) -> None:
        self.updates, self.tracked = updates, updates.tracked

    def one(self, name: str | Mixture | None) -> str | Mixture:
        """`name`, or that of the only average if it is None."""
        if name is None:
            averages = self.updates.averages
            if len(averages) != 1:
                raise ValueError(f"say which average: {', '.join(averages) or 'this averager has none'}")
            return next(iter(averages))
        return name

    def average(self, name: str) -> Average:
        """An average by its name; ValueError for an unknown one."""
        averages = self.updates.averages
        if name not in averages:
            raise ValueError(f"no average {name!r}{nearest(name, [RAW, *averages])}")
        return averages[name]

    def _rule(self, name: str | Profile) -> Profile:
        """The rule of an average, or a mixture that is not one of them."""
        if isinstance(name, str):
            return self.average(name).profile
        check_combined(name, "the mixture", self.updates.averages)
        return name

    def weights(self, name: str | Mixture, T: int | None = None) -> np.ndarray:
        """See `Averager.weights`."""
        T = self.updates.count if T is None else T
        if name == RAW:
            raw: np.ndarray = np.eye(1, T + 1, T)[0]
            return raw
        rule = self._rule(name)
        if rule.combines:
            terms = [w * self.weights(str(other), T) for other, w in rule.read(T).items()]
            combined: np.ndarray = np.sum(terms, axis=0)
            return combined
        return rule.weights(T)

    @torch.no_grad()
    def of(self, name: str | Mixture) -> list[Tensor] | None:
        """The tensors of an average, in the order of what is followed; None where they are the model's own."""
        self.updates.wait()
        if name == RAW:
            return None
        own = self.average(name).sets if isinstance(name, str) else []
        terms: list[tuple[float, Sequence[Tensor] | None]] = [
            (weight, own[key] if isinstance(key, int) else self.of(key))
            for key, weight in self._rule(name).read(self.updates.count).items()
        ]
        if len(terms) == 1 and terms[0][0] == 1.0:
            [(_, values)] = terms
            return None if values is None else list(values)
        live = self.tracked.live()
        return self._combined([(weight, live if values is None else values) for weight, values in terms])

    def _combined(self, terms: Sequence[tuple[float, Sequence[Tensor]]]) -> list[Tensor]:
        """Σ weight · values. Positive weights make a running mean, which leaves equal values exactly as they are."""
        total = [torch.zeros_like(self.updates.empty(f.tensor)) for f in self.tracked.followed]
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

    def by_id(self, name: str | Mixture) -> dict[int, Tensor]:
        """By `id` of the model's tensors, the values of an average; of sharded ones, this process's part."""
        self.updates.look_for_changes()
        return self.tracked.by_id(self.of(name))

    def of_model(self, name: str | Mixture) -> Iterator[tuple[Followed, Tensor]]:
        """See `Averager.state_of`."""
        values = self.by_id(name)
        seen: set[int] = set()
        for entry in following.entries(self.tracked.model):
            if entry.persistent and id(entry.tensor) not in seen:
                seen.add(id(entry.tensor))
                value = values.get(id(entry.tensor))
                own = tensors.local(entry.tensor.detach())
                yield Followed(entry.name, entry.tensor, entry.is_buffer), own if value is None else value
