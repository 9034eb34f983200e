"""Gradient norms by layer, for the averages whose decay depends on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from emabench.averaging.tensors import Followed, is_sharded


def norms(parameters: Sequence[Followed]) -> dict[str, float]:
    """By layer, the Euclidean norm of the gradients in place; layers without one are left out.

    Waits for the device. ValueError if there are no gradients at all, or if they are sharded.
    """
    with_grad = [(f.name.rpartition(".")[0], f.tensor.grad) for f in parameters if f.tensor.grad is not None]
    if not with_grad:
        raise ValueError(
            "there are no gradients: an average that depends on them must be updated before zero_grad"
        )
    if any(is_sharded(grad) for _, grad in with_grad):
        raise ValueError("averages that depend on gradients do not work on sharded parameters")
    each = (
        torch.stack(list(torch._foreach_norm([grad.float() for _, grad in with_grad])))
        .double()
        .square()
        .tolist()
    )
    total: dict[str, float] = {}
    for (layer, _), square in zip(with_grad, each, strict=True):
        total[layer] = total.get(layer, 0.0) + square
    return {layer: square**0.5 for layer, square in total.items()}
