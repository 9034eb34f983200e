"""Updates that follow an optimiser's steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from emabench.averaging.averager import Averager


class Attachment:
    """What `Averager.attach` returns: the optimisers whose steps update the averager, until `remove`."""

    def __init__(self, averager: Averager, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._averager, self.optimizers = averager, tuple(optimizers)
        self._handle = self.optimizers[-1].register_step_post_hook(self._after)

    def _after(self, stepped: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        skipped = getattr(stepped, "found_inf", None)  # fused optimisers are stepped, and skip inside
        if skipped is None or not float(skipped):
            self._averager._update()

    def remove(self) -> None:
        """Detach."""
        self._handle.remove()
        if self._averager._attached is self:
            self._averager._attached = None

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def attach(averager: Averager, optimizers: Sequence[torch.optim.Optimizer]) -> Attachment:
    """See `Averager.attach`."""
    if not optimizers:
        raise ValueError("attach(): give the optimiser whose steps are counted")
    followed = {id(f.tensor) for f in averager.followed}
    for optimizer in optimizers:
        if not any(id(p) in followed for group in optimizer.param_groups for p in group["params"]):
            raise ValueError(
                f"{type(optimizer).__name__} trains none of the averaged parameters: attach the model's own optimiser"
            )
    present = averager._attached
    if present is None:
        averager._attached = Attachment(averager, optimizers)
    elif set(map(id, present.optimizers)) != set(map(id, optimizers)):
        raise RuntimeError(
            "the averager is attached to another optimiser, and would count a step twice: give all of them at once, "
            "attach(first, second), for one update after the last one's step"
        )
    assert averager._attached is not None
    return averager._attached
