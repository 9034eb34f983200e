"""Updates that follow an optimiser's steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from emabench.averaging.updating import Updates


class Attachment:
    """What `Averager.attach` returns: the optimisers whose steps update the averager, until `remove`."""

    def __init__(self, updates: Updates, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._updates, self.optimizers, self.removed = updates, tuple(optimizers), False
        self._handle = self.optimizers[-1].register_step_post_hook(self._after)

    def _after(self, stepped: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        skipped = getattr(stepped, "found_inf", None)  # fused optimisers are stepped, and skip inside
        if skipped is None or not float(skipped):
            self._updates.update()

    def remove(self) -> None:
        """Detach."""
        self._handle.remove()
        self.removed = True

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def attach(
    updates: Updates, optimizers: Sequence[torch.optim.Optimizer], present: Attachment | None
) -> Attachment:
    """See `Averager.attach`. `present`: the attachment that the averager has, if any."""
    if not optimizers:
        raise ValueError("attach(): give the optimiser whose steps are counted")
    followed = {id(f.tensor) for f in updates.tracked.followed}
    for optimizer in optimizers:
        if not any(id(p) in followed for group in optimizer.param_groups for p in group["params"]):
            raise ValueError(
                f"{type(optimizer).__name__} trains none of the averaged parameters: attach the model's own optimiser"
            )
    if present is None:
        return Attachment(updates, optimizers)
    if set(map(id, present.optimizers)) != set(map(id, optimizers)):
        raise RuntimeError(
            "the averager is attached to another optimiser, and would count a step twice: give all of them at once, "
            "attach(first, second), for one update after the last one's step"
        )
    return present
