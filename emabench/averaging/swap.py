"""Putting averaged weights into a model for a while, and taking them out again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from emabench.averaging.tensors import Followed


@contextlib.contextmanager
def swapped(
    followed: Sequence[Followed], values: Sequence[Tensor] | None, buffers: Sequence[Followed]
) -> Iterator[None]:
    """Let `followed` tensors hold `values` inside the block (None: their own), and `buffers` hold copies.

    The tensors stay the same objects with other memory behind them, so compiled modules, optimisers and whoever
    else refers to them see the change. An optimiser step on any of them inside the block raises RuntimeError.
    """
    held = {id(b.tensor): b.tensor for b in buffers}
    scratch = {key: t.detach().clone() for key, t in held.items()}
    pointed: list[tuple[Tensor, Tensor]] = []
    if values is not None:
        for f, value in zip(followed, values, strict=True):
            if f.is_buffer:
                scratch[id(f.tensor)] = value.to(f.tensor.dtype, copy=True)
            else:
                pointed.append((f.tensor, value.to(f.tensor.dtype)))
    pointed += [(held[key], t) for key, t in scratch.items()]
    ours = {id(t) for t, _ in pointed} | {id(f.tensor) for f in followed}

    def refuse(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if any(id(p) in ours for group in optimizer.param_groups for p in group["params"]):
            raise RuntimeError(
                "an optimiser step while an average is applied would train the average: leave its block first"
            )

    own = [t.data for t, _ in pointed]
    hook = register_optimizer_step_pre_hook(refuse)
    try:
        for tensor, value in pointed:
            tensor.data = value
        yield
    finally:
        for (tensor, _), data in zip(pointed, own, strict=True):
            tensor.data = data
        hook.remove()
