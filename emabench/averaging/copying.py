"""A second model like the first: its weights, and everything else that decides its forward."""

from __future__ import annotations

import copy
import operator
from typing import Any

from torch import Tensor, nn

_UNSEEN = object()
_PLAIN = (bool, int, float, complex, str, type(None))


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy. What modules computed from their weights (old weight norm's `weight`) is copied by value."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in module.__dict__.values():
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(tensor, Tensor) and not tensor.is_leaf:
                    memo[id(tensor)] = tensor.detach().clone()
    return copy.deepcopy(model, memo)


class Settings:
    """Plain attributes of modules (a temperature, a drop rate, a counter) that a copy takes over when they change.

    Numbers, strings, None and tuples of them; not names that begin with "_", not `training`. What is set in the copy
    alone stays until the source's changes.
    """

    def __init__(self, source: nn.Module, target: nn.Module) -> None:
        self._modules = list(zip(source.modules(), target.modules(), strict=True))
        self._list()

        self._seen = self._values()

    def _list(self) -> None:
        self._from: list[dict[str, Any]] = []
        self._to: list[dict[str, Any]] = []
        self._keys: list[str] = []
        for source, target in self._modules:
            for key, value in source.__dict__.items():
                if not key.startswith("_") and key != "training" and _is_plain(value):
                    self._from.append(source.__dict__)
                    self._to.append(target.__dict__)
                    self._keys.append(key)
        self._sizes = [len(source.__dict__) for source, _ in self._modules]

    def take_over(self) -> None:
        """Give the copy the attributes that the source has now."""
        if [len(source.__dict__) for source, _ in self._modules] != self._sizes:
            before = {
                (id(held), key): value
                for held, key, value in zip(self._from, self._keys, self._seen, strict=True)
            }
            self._list()
            pairs = zip(self._from, self._keys, strict=True)
            self._seen = [before.get((id(held), key), _UNSEEN) for held, key in pairs]
        values = self._values()
        if not all(map(operator.is_, values, self._seen)):
            for target, key, value, seen in zip(self._to, self._keys, values, self._seen, strict=True):
                if value is not seen and _is_plain(value):
                    target[key] = value
            self._seen = values

    def _values(self) -> list[Any]:
        return [*map(dict.get, self._from, self._keys)]


def _is_plain(value: object) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))
