"""What belongs to the weights it was measured with, and is measured again for others: batch-norm statistics and
their like."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from emabench.averaging.buffers import power_iteration, spectral_norms


def batchnorms(model: nn.Module) -> list[_BatchNorm]:
    """The batch-norm modules of `model` that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def has_batchnorm(model: nn.Module) -> bool:
    """Whether `model` keeps batch-norm statistics that averaged weights need anew."""
    return bool(batchnorms(model))


def _with_statistics(model: nn.Module) -> list[_NormBase]:
    """Batch norm, and instance norm that tracks running statistics."""
    return [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]


@torch.no_grad()
def recalibrate(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], object] | None = None
) -> int:
    """Recompute running statistics as the plain mean over `batches` of each batch's (Izmailov et al. 2018, §3.2).

    Batch norm and instance norm that tracks statistics; the vectors of spectral normalisation are iterated first.

    model: changed in place, its statistics only; all other modules (dropout) run in eval mode, so no random
        numbers are drawn. Training flags and momenta are put back.
    batches: training inputs. A tensor is passed as the argument, of a tuple or list the first entry, a mapping as
        keywords; `forward(model, batch)` does otherwise. Moving to the model's device is the caller's.

    Returns the number of batches. Without such statistics nothing is run. ValueError if there are no batches; then, and
    when a forward raises, the statistics are as before.
    """
    for spectral in spectral_norms(model):
        u, v = power_iteration(spectral, spectral.weight.detach())
        spectral.u.copy_(u)
        spectral.v.copy_(v)
    norms = _with_statistics(model)
    if not norms:
        return 0
    training = {m: m.training for m in model.modules()}
    momenta = [n.momentum for n in norms]
    before = [{key: value.clone() for key, value in n.named_buffers(recurse=False)} for n in norms]
    count = 0
    try:
        model.eval()
        for n in norms:
            n.reset_running_stats()
            n.momentum = None  # the cumulative mean instead of an exponential one
            n.train()
        for batch in batches:
            for n in norms:
                if not isinstance(n, _BatchNorm):  # instance norm knows no cumulative mean
                    n.momentum = 1.0 / (count + 1)
            (forward or _forward)(model, batch)
            count += 1
        if not count:
            raise ValueError("recalibrate: batches is empty; give at least one batch of training inputs")
    except BaseException:
        for n, values in zip(norms, before, strict=True):
            for key, value in values.items():
                getattr(n, key).copy_(value)
        raise
    finally:
        for m, flag in training.items():
            m.training = flag
        for n, momentum in zip(norms, momenta, strict=True):
            n.momentum = momentum
    return count


def _forward(model: nn.Module, batch: Any) -> object:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, (tuple, list)) else batch)
