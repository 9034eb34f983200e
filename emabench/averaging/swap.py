"""Putting averaged weights into a model for a while, and taking them out again without a trace."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.optimizer import register_optimizer_step_pre_hook

from emabench.averaging.following import entries, reshard
from emabench.averaging.tensors import Followed, is_sharded, local

_APPLIED: list[tuple[str, set[int]]] = []
"""(name of the average, ids of the tensors) of every block that is open, of whatever averager."""


def applied_to(tensors: Iterable[Tensor]) -> str | None:
    """The name of the average that one of these tensors holds inside an open block, else None."""
    if not _APPLIED:
        return None
    ids = set(map(id, tensors))
    return next((name for name, held in _APPLIED if held & ids), None)


class Swap:
    """Puts values into a model's tensors for a while. Prepared once, so that a swap costs little.

    followed: the tensors that have averages; their values are given in this order.
    """

    def __init__(self, model: nn.Module, followed: Sequence[Followed]) -> None:
        self._model = model
        self._modules = list(model.modules())
        self._contents: list[dict[str, Any]] = [
            held for m in self._modules for held in (m._parameters, m._buffers, m._modules)
        ]
        self._index = {id(f.tensor): i for i, f in enumerate(followed)}
        self._parameters: list[Tensor] = []
        self._sharded: list[Tensor] = []
        seen: set[int] = set()
        for entry in entries(model):
            if not entry.is_buffer and id(entry.tensor) not in seen:
                seen.add(id(entry.tensor))
                (self._sharded if is_sharded(entry.tensor) else self._parameters).append(entry.tensor)
        self._ids = {*map(id, self._parameters), *map(id, self._sharded)}

    @contextlib.contextmanager
    def applied(
        self, name: str, values: Sequence[Tensor] | None, derived: dict[int, Tensor]
    ) -> Iterator[None]:
        """Inside the block the followed tensors hold `values` (None: their own).

        derived: by `id` of a buffer, the value that follows from the weights.

        The tensors stay the same objects with other memory behind them, so that compiled modules, optimisers and
        whoever else refers to them see the change. The memory is that of the values until something writes to it,
        which then gets a copy of its own (torch's copy-on-write): what happens inside reaches neither the averages
        nor the training weights. Shards of FSDP2 are copied in and out instead, because FSDP gathers from memory of
        its own. Afterwards the modules hold the same tensors, buffers, submodules and gradients as before. An
        optimiser step on the model's parameters inside the block raises RuntimeError.
        """
        contents = [(held, held.copy()) for held in self._contents]
        attributes = [(module, module.__dict__.copy()) for module in self._modules]
        caches = [set(module._non_persistent_buffers_set) for module in self._modules]
        parameters = [*self._parameters, *self._sharded]
        gradients = [p.grad for p in parameters]
        own: list[tuple[Tensor, Tensor]] = []
        shards: list[tuple[Tensor, Tensor]] = []
        with contextlib.ExitStack() as stack:
            stack.enter_context(_registered(name, self._ids))
            hook = register_optimizer_step_pre_hook(self._refuse)
            stack.callback(hook.remove)
            try:
                _clear_caches()
                for p in parameters:
                    p.grad = None
                for tensor in [*self._parameters, *self._buffers()]:
                    data = tensor.data
                    own.append((tensor, data))
                    value = derived.get(id(tensor))
                    if value is None:
                        i = self._index.get(id(tensor)) if values is not None else None
                        value = data if i is None or values is None else values[i]
                    if value.dtype == data.dtype and value.device == data.device:
                        tensor.data = lazy_copy(value)
                    else:
                        tensor.data = value.to(data.device, data.dtype, copy=True)
                if values is not None and self._sharded:
                    for tensor in self._sharded:
                        if id(tensor) in self._index:
                            shard = local(tensor.detach())
                            shards.append((shard, shard.clone()))
                            shard.copy_(values[self._index[id(tensor)]])
                    reshard(self._model)
                    by_value = self._model._register_state_dict_hook(_by_value)  # type: ignore[no-untyped-call]
                    stack.callback(by_value.remove)
                yield
            finally:
                if self._sharded:  # a forward inside leaves gathered weights in the modules
                    reshard(self._model)
                _restore(contents, attributes, caches)
                for tensor, data in own:
                    tensor.data = data
                for shard, data in shards:
                    shard.copy_(data)
                if shards:
                    reshard(self._model)
                for p, gradient in zip(parameters, gradients, strict=True):
                    p.grad = gradient
                _clear_caches()

    def _buffers(self) -> list[Tensor]:
        """All buffers as they are now, each once, caches included."""
        buffers = {id(b): b for m in self._modules for b in m._buffers.values() if b is not None}
        return [*buffers.values()]

    def _refuse(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if any(id(p) in self._ids for group in optimizer.param_groups for p in group["params"]):
            raise RuntimeError(
                "an optimiser step while an average is applied would train the average: leave its block first"
            )


def lazy_copy(value: Tensor) -> Tensor:
    """A copy that takes memory of its own only once either tensor is written to, where torch can do that."""
    if type(value) is Tensor and value.layout == torch.strided and value.device.type in ("cpu", "cuda"):
        return torch._lazy_clone(value)
    return value.clone()


def _restore(
    contents: Sequence[tuple[dict[str, Any], dict[str, Any]]],
    attributes: Sequence[tuple[nn.Module, dict[str, Any]]],
    caches: Sequence[set[str]],
) -> None:
    """Give modules back the tensors, buffers and submodules that they held, and tensors in plain attributes."""
    for held, before in contents:
        if not _same(held, before):
            held.clear()
            held.update(before)
    for (module, before), cache in zip(attributes, caches, strict=True):
        if module._non_persistent_buffers_set != cache:
            module._non_persistent_buffers_set = cache
        now = module.__dict__
        if not _same(now, before):
            for key in [*now]:
                if isinstance(now[key], Tensor) and key not in before:
                    del now[key]
            for key, value in before.items():
                if isinstance(value, Tensor) and now.get(key) is not value:
                    now[key] = value


def _same(held: dict[str, Any], before: dict[str, Any]) -> bool:
    return len(held) == len(before) and all(map(operator.is_, held.values(), before.values()))


@contextlib.contextmanager
def _registered(name: str, ids: set[int]) -> Iterator[None]:
    entry = (name, ids)
    _APPLIED.append(entry)
    try:
        yield
    finally:
        _APPLIED.remove(entry)


def _clear_caches() -> None:
    """What torch computed from the weights and keeps: autocast's casts, and parametrizations inside `cached()`."""
    torch.clear_autocast_cache()
    parametrize._cache.clear()


def _by_value(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """A state_dict taken inside the block refers to shards that get their training weights back: copy them."""
    for key, value in state.items():
        if isinstance(value, Tensor):
            state[key] = value.detach().clone()
