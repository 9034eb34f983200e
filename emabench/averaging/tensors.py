"""What of a model is averaged: its tensors, each once, under the names that the plain model gives them."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


@dataclass(frozen=True)
class Followed:
    """A parameter or persistent buffer of the model, under its first name; `tensor` is the model's own object."""

    name: str
    tensor: Tensor
    is_buffer: bool


def plain_name(model: nn.Module, name: str) -> str:
    """`name` without what wrappers add: `_orig_mod.` of torch.compile, `module.` of (Distributed)DataParallel."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    kept: list[str] = []
    at: object = model
    for part in name.split("."):
        inside_wrapper = part == "module" and isinstance(at, parallel)
        if part not in _WRAPPERS and not inside_wrapper:
            kept.append(part)
        at = getattr(at, part, None)
    return ".".join(kept)


def state_of(model: nn.Module) -> Iterator[tuple[str, object]]:
    """(plain name, the model's own object) for everything in `model.state_dict()`; tied tensors come repeatedly."""
    for name, value in model.state_dict(keep_vars=True).items():
        yield plain_name(model, name), value


def followed(model: nn.Module, frozen: str) -> tuple[list[Followed], list[Followed]]:
    """(parameters, persistent buffers) of the model, each tensor once however often it is tied.

    Parameters that do not require gradients are left out when `frozen` is "live"; so are integer parameters.
    """
    parameters, buffers, seen = [], [], set()
    for name, value in state_of(model):
        if not isinstance(value, Tensor) or id(value) in seen:
            continue
        seen.add(id(value))
        if value.is_meta:
            raise ValueError(f"{name!r} is on the meta device: materialise the model before averaging it")
        if not isinstance(value, nn.Parameter):
            buffers.append(Followed(name, value, True))
        elif averageable(value) and (value.requires_grad or frozen == "average"):
            parameters.append(Followed(name, value, False))
    return parameters, buffers


class Structure:
    """The entries of modules that hold what is followed; none for shards, which FSDP2 exchanges itself."""

    def __init__(self, model: nn.Module, followed: Sequence[Followed]) -> None:
        ours = {id(f.tensor) for f in followed if not is_sharded(f.tensor)}
        self._held: list[dict[str, Any]] = []
        self._keys: list[str] = []
        self._contents: list[Tensor | nn.Module] = []
        for module in model.modules():
            inside = (
                m for m in module.children() if any(id(t) in ours for t in (*m.parameters(), *m.buffers()))
            )
            watched = ours | {id(m) for m in inside}
            for held in (module._parameters, module._buffers, module._modules):
                for key, content in held.items():
                    if content is not None and id(content) in watched:
                        self._held.append(held)
                        self._keys.append(key)
                        self._contents.append(content)

    def unchanged(self) -> bool:
        """Whether every entry holds the same object. Asked at every update, hence without a loop in Python."""
        return all(map(operator.is_, map(dict.get, self._held, self._keys), self._contents))


def averageable(tensor: Tensor) -> bool:
    """Whether a mean of such tensors makes sense: real or complex, not integer or boolean."""
    return tensor.is_floating_point() or tensor.is_complex()


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only its part of the tensor's memory under a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")  # not imported (it takes seconds): there can be none
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """The tensor's memory on this process: itself, or the shard of a DTensor (FSDP2, tensor parallel)."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def shadow_dtype(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The type an average of `tensor` is held in: `dtype`, or else float32 or wider."""
    held = dtype or torch.promote_types(tensor.dtype, torch.float32)
    return held.to_complex() if tensor.is_complex() and not held.is_complex else held


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
