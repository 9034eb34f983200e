"""One kernel launch for a whole update on a GPU: every parameter read once, all K averages moved (Triton).

The same lerp form as the CPU path, within rounding. `table` gives None where this does not pay or cannot run
(no CUDA, no Triton, mixed types, non-contiguous memory), and the chunked path serves instead.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emabench.averaging.tensors import dense

if TYPE_CHECKING:
    from emabench.averaging.kernels import Move

OLDEST_TRITON = (
    3,
    2,
)  # in the interpreter of 3.0 (torch 2.4) the kernel's results are wrong; 3.1 is unchecked
BLOCK = 4096  # elements that one program handles


@dataclass(frozen=True)
class Table:
    """Where everything lies, on the device.

    sets: number of sets of averages; rows: int64 [sets + 1, tensors], addresses of the live tensors, then of each
    set's; sizes: int64 [tensors]; blocks: int32 [2, programs], tensor and block within it for each program.
    state: int32 [2], the first update that was refused (0: none), the last one made; seen: its copy on the host.
    """

    sets: int
    rows: Tensor
    sizes: Tensor
    blocks: Tensor
    state: Tensor
    seen: Tensor
    theta_type: torch.dtype
    shadow_type: torch.dtype
    keep: tuple[Any, ...]  # the tensors behind the addresses


def table(
    live: Sequence[Tensor], sets: Sequence[Sequence[Tensor]], *, devices: Sequence[str] = ("cuda",)
) -> Table | None:
    """The table for these tensors, or None if the kernel does not apply to them."""
    if not live or not sets or live[0].device.type not in devices or _kernel() is None:
        return None
    half, full = (torch.float16, torch.bfloat16), (torch.float32, torch.float64)
    device, theta_type, shadow_type = live[0].device, live[0].dtype, sets[0][0].dtype
    if theta_type not in half + full or shadow_type not in full:
        return None
    for i, tensor in enumerate(live):
        row = [tensor, *(s[i] for s in sets)]
        same_layout = all(r.device == device and r.stride() == tensor.stride() and dense(r) for r in row)
        if not same_layout or tensor.dtype != theta_type or any(r.dtype != shadow_type for r in row[1:]):
            return None
    rows = torch.tensor([[t.data_ptr() for t in row] for row in (live, *sets)], dtype=torch.int64)
    programs = [(i, b) for i, t in enumerate(live) for b in range(-(-t.numel() // BLOCK))]
    blocks = torch.tensor(programs, dtype=torch.int32).t().contiguous()
    sizes = torch.tensor([t.numel() for t in live], dtype=torch.int64)
    keep = (tuple(live), tuple(tuple(s) for s in sets))
    return Table(
        len(sets),
        rows.to(device),
        sizes.to(device),
        blocks.to(device),
        torch.zeros(2, dtype=torch.int32, device=device),
        torch.zeros(2, dtype=torch.int32, pin_memory=device.type == "cuda"),
        theta_type,
        shadow_type,
        keep,
    )


def run(t: Table, moves: Sequence[Move], update: int, check: bool) -> None:
    """average += alpha · (θ − average) for each move, in the device's own time.

    With `check`, weights that are not finite stop this and all later updates on the device, without the host's
    being asked: state[0] is then the number of this `update`.
    """
    device = t.rows.device
    which = torch.tensor([m.set for m in moves], dtype=torch.int32).to(device, non_blocking=True)
    source = [-1 if m.source is None else m.source for m in moves]
    sources = torch.tensor(source, dtype=torch.int32).to(device, non_blocking=True)
    alphas = torch.tensor([list(m.alphas) for m in moves], dtype=torch.float64)
    alphas = alphas.to(device, t.shadow_type, non_blocking=True)
    kernel = _kernel()
    programs, tensors = t.blocks.shape[1], t.rows.shape[1]
    theta_type = kernel.TYPES[str(t.theta_type).removeprefix("torch.")]
    shadow_type = kernel.TYPES[str(t.shadow_type).removeprefix("torch.")]
    grid = (programs,)
    if check:
        kernel.look[grid](t.rows, t.sizes, t.blocks, t.state, tensors, programs, update, BLOCK, theta_type)
    kernel.move[grid](
        t.rows,
        t.sizes,
        t.blocks,
        which,
        sources,
        alphas,
        t.state,
        len(moves),
        tensors,
        programs,
        update,
        BLOCK,
        theta_type,
        shadow_type,
    )
    t.seen.copy_(t.state, non_blocking=True)


def progress(t: Table, wait: bool) -> tuple[int, int]:
    """(number of the update that was refused or 0, number of the last update that the device has come to).

    Without `wait` as far as the host has heard, which costs the device nothing.
    """
    refused, done = (t.state.cpu() if wait else t.seen).numpy().tolist()
    return refused, done


@functools.cache
def _kernel() -> Any:
    """The kernel's module, or None without Triton or with one that is too old."""
    try:
        version = importlib.metadata.version("triton")
        from emabench.averaging import fused_kernel
    except ImportError:
        return None
    old = tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TRITON
    return None if old else fused_kernel
