"""Averages in bfloat16, rounded up or down at random so that the expected value is exact.

bfloat16 has 8 bits: at a decay above about .99 an update is less than half a unit in the last place, and rounding to
the nearest never moves the average. Stochastic rounding moves it by a whole unit with the probability that makes up
for it. The random bits are a hash of (element, update, average), so that a run that resumes draws the same, in C and
in torch alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def mixed(x: int) -> int:
    """Wellons' 32-bit mixing function "lowbias32" (nullprogram.com/blog/2018/07/31), of one number."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & _MASK
    return x ^ (x >> 16)


def seed(update: int, of: int) -> int:
    """The seed of average `of` in an update, 32 bits."""
    return mixed((mixed(update & _MASK) + of) & _MASK)


def noise(first: int, like: Tensor, seed: int) -> Tensor:
    """16 random bits, as int32, for elements first, first + 1, … of the model, shaped like `like`."""
    x = torch.arange(first, first + like.numel(), device=like.device)
    x = (x * 0x9E3779B9 + seed) & _MASK
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & _MASK
    return ((x ^ (x >> 16)) & 0xFFFF).to(torch.int32).view(like.shape)


def lerp(shadow: Tensor, theta: Tensor, alpha: float, bits: Tensor) -> None:
    """shadow += alpha · (theta − shadow) in float32, rounded into the bfloat16 `shadow` by `bits`."""
    if alpha == 0.0:
        return
    theta = theta.float()
    new = theta.clone() if alpha == 1.0 else torch.lerp(shadow.float(), theta, alpha)
    rounded = (new.view(torch.int32) + bits).bitwise_and_(-65536).view(torch.float32)
    shadow.copy_(torch.where(new.isfinite(), rounded, new))
