"""Augmentation of a whole batch on its device, drawn from a generator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def crop_and_flip(x: Tensor, pad: int, flip: bool, draw: torch.Generator) -> Tensor:
    """Every image moved by up to `pad` pixels over zeros, and mirrored half of the time (He et al. 2016, §4.2).

    x: (N, C, H, W); `draw` lives on x's device.
    """
    n, _, height, width = x.shape
    if pad:
        padded = F.pad(x, (pad, pad, pad, pad))
        offsets = torch.randint(0, 2 * pad + 1, (2, n, 1), generator=draw, device=x.device)
        rows = offsets[0] + torch.arange(height, device=x.device)
        columns = offsets[1] + torch.arange(width, device=x.device)
        image = torch.arange(n, device=x.device)[:, None, None]
        x = padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if flip:
        mirrored = torch.rand(n, 1, 1, 1, generator=draw, device=x.device) < 0.5
        x = torch.where(mirrored, x.flip(3), x)
    return x.contiguous()
