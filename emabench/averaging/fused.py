"""One kernel launch for a whole update on a GPU: every parameter read once, all K averages moved (Triton).

The same lerp form as the CPU path, within rounding. `table` gives None where this does not pay or cannot run
(no CUDA, no Triton, mixed types, non-contiguous memory), and the chunked path serves instead.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emabench.averaging.tensors import dense

BLOCK = 4096  # elements that one program handles


@dataclass(frozen=True)
class Table:
    """Where everything lies, on the device.

    sets: number of sets of averages; rows: int64 [sets + 1, tensors], addresses of the live tensors, then of each
    set's; sizes: int64 [tensors]; blocks: int32 [2, programs], tensor and block within it for each program.
    """

    sets: int
    rows: Tensor
    sizes: Tensor
    blocks: Tensor
    theta_type: torch.dtype
    shadow_type: torch.dtype
    keep: tuple[Any, ...]  # the tensors behind the addresses


def table(
    live: Sequence[Tensor], sets: Sequence[Sequence[Tensor]], *, devices: Sequence[str] = ("cuda",)
) -> Table | None:
    """The table for these tensors, or None if the kernel does not apply to them."""
    if not live or not sets or live[0].device.type not in devices or _kernel() is None:
        return None
    half, whole = (torch.float16, torch.bfloat16), (torch.float32, torch.float64)
    device, theta_type, shadow_type = live[0].device, live[0].dtype, sets[0][0].dtype
    if theta_type not in half + whole or shadow_type not in whole:
        return None
    for i, tensor in enumerate(live):
        row = [tensor, *(s[i] for s in sets)]
        alike = all(r.device == device and r.stride() == tensor.stride() and dense(r) for r in row)
        if not alike or tensor.dtype != theta_type or any(r.dtype != shadow_type for r in row[1:]):
            return None
    rows = torch.tensor([[t.data_ptr() for t in row] for row in (live, *sets)], dtype=torch.int64)
    programs = [(i, b) for i, t in enumerate(live) for b in range(-(-t.numel() // BLOCK))]
    blocks = torch.tensor(programs, dtype=torch.int32).t().contiguous()
    sizes = torch.tensor([t.numel() for t in live], dtype=torch.int64)
    keep = (tuple(live), tuple(tuple(s) for s in sets))
    return Table(
        len(sets), rows.to(device), sizes.to(device), blocks.to(device), theta_type, shadow_type, keep
    )


def run(t: Table, moves: Sequence[tuple[int, Sequence[float]]]) -> None:
    """average += alpha · (θ − average) for each (set, alpha by tensor)."""
    which = torch.tensor([index for index, _ in moves], dtype=torch.int32).to(
        t.rows.device, non_blocking=True
    )
    alpha_rows = torch.tensor([list(alphas) for _, alphas in moves], dtype=torch.float64)
    alpha_rows = alpha_rows.to(t.rows.device, t.shadow_type, non_blocking=True)
    kernel = _kernel()
    kernel.move[(t.blocks.shape[1],)](
        t.rows,
        t.sizes,
        t.blocks,
        which,
        alpha_rows,
        len(moves),
        t.rows.shape[1],
        t.blocks.shape[1],
        BLOCK,
        kernel.TYPES[str(t.theta_type).removeprefix("torch.")],
        kernel.TYPES[str(t.shadow_type).removeprefix("torch.")],
    )


@functools.cache
def _kernel() -> Any:
    """The kernel's module, or None without Triton."""
    try:
        from emabench.averaging import fused_kernel
    except ImportError:
        return None
    return fused_kernel
