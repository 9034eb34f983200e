"""Tensors of one model: the memory behind them, whole or in shards, and the type their averages are held in."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Followed:
    """A parameter or buffer that is averaged, under its first name; `tensor` is the model's own object."""

    name: str
    tensor: Tensor
    is_buffer: bool


def averageable(tensor: Tensor) -> bool:
    """Whether a mean of such tensors makes sense: real or complex, not integer or boolean."""
    return tensor.is_floating_point() or tensor.is_complex()


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only its part of the tensor's memory under a DTensor."""
    for name in ("torch.distributed.tensor", "torch.distributed._tensor"):  # the second before torch 2.5
        kind = getattr(
            sys.modules.get(name), "DTensor", None
        )  # not imported (it takes seconds): there can be none
        if kind is not None:
            return isinstance(tensor, kind)
    return False


def local(tensor: Tensor) -> Tensor:
    """The tensor's memory on this process: itself, or the shard of a DTensor (FSDP2, tensor parallel)."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def shadow_dtype(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The type an average of `tensor` is held in: `dtype`, or else float32 or wider."""
    held = dtype or torch.promote_types(tensor.dtype, torch.float32)
    return held.to_complex() if tensor.is_complex() and not held.is_complex else held


def empty_average(tensor: Tensor, dtype: torch.dtype | None, on_cpu: bool) -> Tensor:
    """Memory for an average of `tensor`, on its device or on the CPU; of a sharded one, for this process's part."""
    shard = local(tensor.detach())
    return torch.empty_like(shard, dtype=shadow_dtype(tensor, dtype), device="cpu" if on_cpu else None)


def like(tensor: Tensor, shard: Tensor | None) -> Tensor:
    """`shard` as the kind of tensor that `tensor` is (a DTensor's averaged shard becomes a DTensor); None: itself."""
    if shard is None:
        return tensor.detach()
    if is_sharded(tensor):
        from torch.distributed.tensor import DTensor

        assert isinstance(tensor, DTensor)
        return DTensor.from_local(
            shard,
            tensor.device_mesh,
            tensor.placements,
            shape=tensor.shape,
            stride=tensor.stride(),
            run_check=False,
        )
    return shard


def local_part(tensor: Tensor, saved: Tensor) -> Tensor:
    """What this process keeps of a saved tensor that stands for `tensor`: its shard, of a DTensor or of a whole."""
    return local(distributed_as(tensor, saved)) if is_sharded(tensor) else saved


def distributed_as(tensor: Tensor, full: Tensor) -> Tensor:
    """A whole tensor in shards as `tensor` is, itself where that is whole. All processes hold the same one."""
    if not is_sharded(tensor) or is_sharded(full) or full.shape != tensor.shape:
        return full
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(tensor, DTensor)
    return distribute_tensor(full.to(tensor.device), tensor.device_mesh, tensor.placements)


def dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory without gaps or overlap, in whatever order (channels last, say)."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
