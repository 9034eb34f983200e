"""Which examples make up the batch of a step: a pure function of (seed, step), so any step can be resumed at."""

from __future__ import annotations

import torch
from torch import Tensor

from emabench import seeding


class Batches:
    """Passes over n examples in an order drawn again for each pass, `size` at a time; a last, smaller batch is left out.

    Where n < size every batch is drawn with replacement.
    """

    def __init__(self, n: int, size: int, seed: int) -> None:
        self.n, self.size, self.seed = n, size, seed
        self.each_pass = n // size
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def indices(self, step: int) -> Tensor:
        """The examples of the batch at `step`: int64, (size,), on the CPU."""
        if not self.each_pass:
            return torch.randint(self.n, (self.size,), generator=seeding.generator(self.seed, "batch", step))
        epoch, batch = divmod(step, self.each_pass)
        if self._order[0] != epoch:
            order = torch.randperm(self.n, generator=seeding.generator(self.seed, "order", epoch))
            self._order = (epoch, order)
        return self._order[1][batch * self.size : (batch + 1) * self.size]
