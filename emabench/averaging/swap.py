"""Putting averaged weights into a model for a while, and taking them out again without a trace."""

from __future__ import annotations

import contextlib
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
        structure = [_Contents(module) for module in self._modules]
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
                    own.append((tensor, tensor.data))
                    tensor.data = self._value(tensor, values, derived)
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
                for contents in structure:
                    contents.restore()
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
        found = {id(b): b for m in self._modules for b in m._buffers.values() if b is not None}
        return [*found.values()]

    def _value(self, tensor: Tensor, values: Sequence[Tensor] | None, derived: dict[int, Tensor]) -> Tensor:
        value = derived.get(id(tensor))
        if value is None and values is not None and id(tensor) in self._index:
            value = values[self._index[id(tensor)]]
        if value is None:
            value = tensor.data
        if value.dtype != tensor.dtype or value.device != tensor.device:
            return value.to(tensor.device, tensor.dtype, copy=True)
        return lazy_copy(value)

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


class _Contents:
    """What a module holds: its tensors, buffers, submodules, and tensors in plain attributes (old weight norm's)."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        dicts: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, module._modules)
        self._dicts = [(held, dict(held)) for held in dicts]
        self._caches = set(module._non_persistent_buffers_set)
        self._attributes = _tensors_of(module)

    def restore(self) -> None:
        for held, before in self._dicts:
            if len(held) != len(before) or any(held.get(key) is not value for key, value in before.items()):
                held.clear()
                held.update(before)
        if self._module._non_persistent_buffers_set != self._caches:
            self._module._non_persistent_buffers_set = self._caches
        now = _tensors_of(self._module)
        for key in now.keys() - self._attributes.keys():
            del self._module.__dict__[key]
        for key, value in self._attributes.items():
            if now.get(key) is not value:
                self._module.__dict__[key] = value


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in module.__dict__.items() if isinstance(value, Tensor)}


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
