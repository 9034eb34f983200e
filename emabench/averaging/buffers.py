"""Which policy is right for a buffer, by what its module is, and the values that follow from the weights.

average     batch-norm statistics and other floating-point buffers: averaged as weights are
copy        counters, masks, positions, caches: the model's current value
recompute   as copy; `recalibrate` is to be called inside `Averager.applied`
power_iteration
            the u and v of spectral normalisation: singular vectors of the weights they belong to. An average of
            vectors of many steps, or those of the current weights, are not the averaged weights' own, and the
            estimated norm may then come out far too small. They are iterated again from the current ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

POLICIES = ("average", "copy", "recompute")
ITERATIONS = 200  # at most; the norm has settled to 1e-6 after a few, as the current vectors are near


@dataclass(frozen=True)
class SpectralNorm:
    """One spectrally normalised weight: its tensors, and how the weight becomes the matrix [rows, columns]."""

    weight: Tensor
    u: Tensor
    v: Tensor
    matrix: Callable[[Tensor], Tensor]
    eps: float


def spectral_norms(model: nn.Module) -> Iterator[SpectralNorm]:
    """Every weight under torch's spectral normalisation, as a parametrization or in the older form of a hook."""
    for module in model.modules():
        for rules in getattr(module, "parametrizations", {}).values():
            for rule in rules:
                if type(rule).__name__ == "_SpectralNorm" and hasattr(rule, "_u"):
                    yield SpectralNorm(
                        rules.original, rule._u, rule._v, rule._reshape_weight_to_matrix, rule.eps
                    )
        for hook in _old_spectral_norms(module):
            weight, u, v = (getattr(module, f"{hook.name}_{part}") for part in ("orig", "u", "v"))
            yield SpectralNorm(weight, u, v, hook.reshape_weight_to_matrix, hook.eps)


def policy(module: nn.Module, buffer: Tensor, default: str) -> str:
    """The policy of a buffer that no pattern names."""
    if any(buffer is one for norm in _spectral_norms_of(module) for one in norm):
        return "power_iteration"
    if not (buffer.is_floating_point() or buffer.is_complex()):
        return "copy"
    if isinstance(module, _NormBase):
        return default
    if buffer.is_meta or buffer.layout != torch.strided or buffer.is_quantized or buffer.element_size() == 1:
        return "copy"
    if not bool(buffer.isfinite().all()):  # a mask of −inf; statistics that are not finite are an error
        return "copy"
    return default


def _spectral_norms_of(module: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    if type(module).__name__ == "_SpectralNorm" and hasattr(module, "_u"):
        yield module._u, module._v  # type: ignore[misc]
    for hook in _old_spectral_norms(module):
        yield getattr(module, f"{hook.name}_u"), getattr(module, f"{hook.name}_v")


def _old_spectral_norms(module: nn.Module) -> list[Any]:
    return [hook for hook in module._forward_pre_hooks.values() if type(hook).__name__ == "SpectralNorm"]


@torch.no_grad()
def power_iteration(norm: SpectralNorm, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The u and v of another weight of the same shape: power iteration from the current ones (Miyato et al. 2018, alg. 1)."""
    matrix = norm.matrix(weight.to(norm.u.device, torch.promote_types(norm.u.dtype, torch.float32)))
    u, v = norm.u.to(matrix.dtype), norm.v.to(matrix.dtype)
    before = torch.zeros((), dtype=matrix.dtype, device=matrix.device)
    for i in range(ITERATIONS):
        v = nn.functional.normalize(torch.mv(matrix.t(), u), dim=0, eps=norm.eps)
        u = nn.functional.normalize(torch.mv(matrix, v), dim=0, eps=norm.eps)
        if i % 5 == 4:
            sigma = torch.dot(u, torch.mv(matrix, v))
            if bool((sigma - before).abs() <= 1e-6 * sigma.abs()):
                break
            before = sigma
    return u.to(norm.u.dtype), v.to(norm.v.dtype)
