"""Putting averaged weights into a model for a while, and taking them out again."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from emabench.averaging.tensors import Followed, is_sharded, local


class Swap:
    """Puts values into a model's tensors for a while. Prepared once, so that a swap costs little."""

    def __init__(self, model: nn.Module, followed: Sequence[Followed], buffers: Sequence[Followed]) -> None:
        self._model = model
        self._pointed = [i for i, f in enumerate(followed) if not f.is_buffer and not is_sharded(f.tensor)]
        self._copied = [i for i, f in enumerate(followed) if not f.is_buffer and is_sharded(f.tensor)]
        self._tensors = [f.tensor for f in followed]
        self._names = [f.name for f in followed]
        averaged = {id(f.tensor): i for i, f in enumerate(followed) if f.is_buffer}
        self._buffers = [(b.tensor, averaged.get(id(b.tensor))) for b in buffers]

    def _refuse(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        ours = set(map(id, self._tensors))
        if any(id(p) in ours for group in optimizer.param_groups for p in group["params"]):
            raise RuntimeError(
                "an optimiser step while an average is applied would train the average: leave its block first"
            )

    @contextlib.contextmanager
    def applied(self, values: Sequence[Tensor] | None) -> Iterator[None]:
        """Inside the block the followed tensors hold `values` (None: their own), all buffers hold copies.

        The tensors stay the same objects with other memory behind them, so that compiled modules, optimisers and
        whoever else refers to them see the change. Shards of FSDP2 are copied in and out instead, because FSDP
        gathers from memory of its own. An optimiser step on any of the tensors inside the block raises
        RuntimeError; so does leaving the block after a parameter was changed in place.
        """
        pointed, own, versions = [], [], []
        for buffer, i in self._buffers:
            source = buffer.detach() if values is None or i is None else values[i]
            pointed.append((buffer, source.to(buffer.device, buffer.dtype, copy=True)))
        if values is not None:
            for i in self._pointed:
                tensor = self._tensors[i]
                pointed.append((tensor, values[i].to(tensor.device, tensor.dtype)))
        shards = (
            [(local(self._tensors[i].detach()), values[i]) for i in self._copied]
            if values is not None
            else []
        )
        kept = [shard.clone() for shard, _ in shards]
        hook = register_optimizer_step_pre_hook(self._refuse)
        try:
            for tensor, value in pointed:
                own.append(tensor.data)
                tensor.data = value
            for shard, value in shards:
                shard.copy_(value)
            self._gather_again()
            versions = [self._tensors[i]._version for i in self._pointed]
            yield
            changed = [
                i for i, v in zip(self._pointed, versions, strict=True) if self._tensors[i]._version != v
            ]
            if changed and values is not None:
                name = self._names[changed[0]]
                raise RuntimeError(
                    f"{name!r} was changed in place while an average was applied: the average is damaged"
                )
        finally:
            for (tensor, _), data in zip(pointed, own, strict=False):
                tensor.data = data
            for (shard, _), data in zip(shards, kept, strict=True):
                shard.copy_(data)
            self._gather_again()
            hook.remove()

    def _gather_again(self) -> None:
        """FSDP2 may hold gathered weights over from the last forward; make it gather again."""
        fsdp = sys.modules.get("torch.distributed.fsdp")  # not imported: no module can be sharded
        if fsdp is not None and self._copied:
            for module in self._model.modules():
                if isinstance(module, fsdp.FSDPModule):
                    module.reshard()
