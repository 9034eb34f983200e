"""What of a model is averaged: a walk over its parameters and buffers themselves, and the rules that choose.

`model.state_dict()` is not asked: its hooks and overrides may return copies, leave tensors out or nest them.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from emabench.averaging import buffers as kinds
from emabench.averaging._checks import check_choice
from emabench.averaging.layers import matches
from emabench.averaging.profiles import Profile, from_dict
from emabench.averaging.tensors import Followed, averageable, is_sharded

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)

Patterns = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """One place of a model that holds a tensor; tied tensors have several.

    name: without what wrappers add (`_orig_mod.` of torch.compile, `module.` of DistributedDataParallel);
    own_name: as the wrapped model calls it; persistent: whether a state_dict has it.
    """

    name: str
    own_name: str
    tensor: Tensor
    is_buffer: bool
    persistent: bool
    module: nn.Module


def walk(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """(module, plain prefix, own prefix) for every place of a module, in the order of a state_dict."""

    def visit(module: nn.Module, plain: str, own: str) -> Iterator[tuple[nn.Module, str, str]]:
        yield module, plain, own
        for key, child in module._modules.items():
            if child is not None:
                hidden = key in _WRAPPERS or (key == "module" and isinstance(module, _PARALLEL))
                stripped = key == "_checkpoint_wrapped_module"  # by the wrapper itself, in a state_dict
                prefix = own if stripped else f"{own}{key}."
                yield from visit(child, plain if hidden else f"{plain}{key}.", prefix)

    return visit(model, "", "")


def entries(model: nn.Module) -> Iterator[Entry]:
    """Every place of a parameter or buffer, in the order of a state_dict, non-persistent buffers included."""
    for module, plain, own in walk(model):
        for key, parameter in module._parameters.items():
            if parameter is not None:
                yield Entry(plain + key, own + key, parameter, False, True, module)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                persistent = key not in module._non_persistent_buffers_set
                yield Entry(plain + key, own + key, buffer, True, persistent, module)


def extra_states(model: nn.Module) -> Iterator[tuple[str, str, object]]:
    """(plain name, own name, value) of what modules keep in a state_dict beside tensors (`get_extra_state`)."""
    for module, plain, own in walk(model):
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            yield f"{plain}_extra_state", f"{own}_extra_state", module.get_extra_state()


def matching(name: str, patterns: Patterns) -> str | None:
    """The first pattern that the name fits."""
    return next((pattern for pattern in patterns if matches(name, pattern)), None)


@dataclass(frozen=True)
class Rules:
    """Which parameters and buffers are averaged.

    frozen: "average" or "live", of parameters that need no gradient; buffers: the policy of batch-norm statistics
    and other floating-point buffers; buffer_patterns, parameter_patterns: exceptions by name, the first that fits
    decides.
    """

    frozen: str
    buffers: str
    buffer_patterns: Mapping[str, str]
    parameter_patterns: Mapping[str, Any]

    def parameter(self, entry: Entry) -> bool:
        """Whether this parameter is averaged."""
        pattern = matching(entry.name, self.parameter_patterns)
        if pattern is not None and self.parameter_patterns[pattern] == "live":
            return False
        return averageable(entry.tensor) and (
            entry.tensor.requires_grad or self.frozen == "average" or pattern is not None
        )

    def buffer(self, entry: Entry) -> str:
        """The policy of this buffer: "average", "copy", "recompute" or "power_iteration"."""
        if not entry.persistent:
            return "copy"
        pattern = matching(entry.name, self.buffer_patterns)
        if pattern is not None:
            return self.buffer_patterns[pattern]
        return kinds.policy(entry.module, entry.tensor, self.buffers)


def rules(buffers: str | Mapping[str, str], parameters: Patterns, frozen: str) -> Rules:
    """The rules from what `Averager` is given. ValueError for unknown words."""
    check_choice("frozen", frozen, ("average", "live"))
    policies = (*kinds.POLICIES, "power_iteration")
    if isinstance(buffers, Mapping):
        for pattern, policy in buffers.items():
            check_choice(f"buffers[{pattern!r}]", policy, policies)
    else:
        check_choice("buffers", buffers, kinds.POLICIES)
    for pattern, rule in parameters.items():
        if isinstance(rule, str):
            check_choice(f"parameters[{pattern!r}]", rule, ("average", "live"))
    return Rules(
        frozen,
        buffers if isinstance(buffers, str) else "average",
        buffers if isinstance(buffers, Mapping) else {},
        {pattern: rule if isinstance(rule, str) else from_dict(rule) for pattern, rule in parameters.items()},
    )


@dataclass
class Selection:
    """What the rules make of a model: parameters and buffers that are averaged, each tensor once.

    frozen: parameters that are left out because they need no gradient; policies: of every persistent buffer.
    """

    parameters: list[Followed]
    buffers: list[Followed]
    frozen: list[Followed]
    policies: dict[str, str]

    @property
    def followed(self) -> list[Followed]:
        return self.parameters + self.buffers


def select(model: nn.Module, rules: Rules, *, known: Mapping[str, str] | None = None) -> Selection:
    """Choose what is averaged.

    known: policies of buffers that were chosen before, which stay although the values may be others now.

    Raises ValueError where something trainable could not be averaged, or nothing would be.
    """
    reshard(model)
    _refuse_models(model)
    parameters: list[Followed] = []
    averaged: list[Followed] = []
    frozen: list[Followed] = []
    policies: dict[str, str] = {}
    seen: set[int] = set()
    names: dict[bool, list[str]] = {False: [], True: []}
    for entry in entries(model):
        names[entry.is_buffer].append(entry.name)
        if id(entry.tensor) in seen:
            continue
        seen.add(id(entry.tensor))
        chosen = Followed(entry.name, entry.tensor, entry.is_buffer)
        if entry.is_buffer:
            policy = (known or {}).get(entry.name) or rules.buffer(entry)
            policies[entry.name] = policy
            if policy == "average" and averageable(entry.tensor):
                _refuse_tensor(entry)
                averaged.append(chosen)
        elif rules.parameter(entry) or (entry.tensor.is_quantized and rules.frozen == "average"):
            _refuse_tensor(entry)
            parameters.append(chosen)
        elif matching(entry.name, rules.parameter_patterns) is None and averageable(entry.tensor):
            frozen.append(chosen)
    for is_buffer, patterns in ((True, rules.buffer_patterns), (False, rules.parameter_patterns)):
        for pattern in patterns:
            if not any(matches(name, pattern) for name in names[is_buffer]):
                kind = "buffer" if is_buffer else "parameter"
                raise ValueError(f"{kind}s={{{pattern!r}: …}}: no {kind} of the model has such a name")
    _refuse_unregistered(model, seen, rules.parameter_patterns)
    if not parameters:
        why = "all of them are frozen or left out" if seen else "it has none (yet)"
        raise ValueError(
            f"{type(model).__name__} has no parameter to average: {why}; give the module that is trained, after "
            "its layers are made"
        )
    return Selection(parameters, averaged, frozen, policies)


def reshard(model: nn.Module) -> None:
    """FSDP2 holds gathered parameters over from a forward; what is averaged are the shards."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # not imported: no module can be sharded
    if fsdp is not None and hasattr(fsdp, "FSDPModule"):
        for module in model.modules():
            if isinstance(module, fsdp.FSDPModule):
                module.reshard()


def _refuse_models(model: nn.Module) -> None:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    old = getattr(fsdp, "FullyShardedDataParallel", None)
    for name, module in model.named_modules():
        if old is not None and isinstance(module, old):
            raise ValueError(
                f"{name or type(module).__name__!r} is sharded by FSDP1, whose flat parameters cannot be averaged by "
                "name: shard with FSDP2 (torch.distributed.fsdp.fully_shard)"
            )


def _refuse_tensor(entry: Entry) -> None:
    """ValueError for tensors that have no average, in one line that says what to do instead."""
    tensor, name = entry.tensor, entry.name
    remedy = f"{'buffers' if entry.is_buffer else 'parameters'}={{{name!r}: {'copy' if entry.is_buffer else 'live'!r}}}"
    if hasattr(tensor, "ds_id"):
        raise ValueError(
            f"{name!r} is partitioned by DeepSpeed ZeRO-3, which leaves a placeholder here: use ZeRO-1 or 2, or FSDP2"
        )
    if nn.parameter.is_lazy(tensor):
        raise ValueError(f"{name!r} has no shape yet: run one forward pass before making the averager")
    if tensor.is_meta:
        raise ValueError(f"{name!r} is on the meta device: materialise the model before averaging it")
    if tensor.is_quantized:
        raise ValueError(
            f"{name!r} is quantised, and such tensors have no average; leave it out with {remedy}"
        )
    if tensor.layout != torch.strided:
        raise ValueError(
            f"{name!r} is {tensor.layout}, and only dense tensors are averaged; leave it out with {remedy}"
        )
    if tensor.is_floating_point() and tensor.element_size() == 1:
        raise ValueError(
            f"{name!r} is {tensor.dtype}: 8-bit weights hold no step of an average; average the model of higher "
            f"precision that is trained, or leave it out with {remedy}"
        )


def _refuse_unregistered(model: nn.Module, registered: set[int], patterns: Patterns) -> None:
    """Parameters in plain lists, tuples and dicts of a module are trained by whoever collects them, and not seen."""
    for module, plain, _ in walk(model):
        for key, held in module.__dict__.items():
            if key.startswith("_") or not isinstance(held, (list, tuple, dict)):
                continue
            for at, value in held.items() if isinstance(held, dict) else enumerate(held):
                if isinstance(value, nn.Parameter) and value.requires_grad and id(value) not in registered:
                    name = f"{plain}{key}[{at!r}]"
                    if matching(f"{plain}{key}", patterns) is None:
                        raise ValueError(
                            f"{name} is a parameter that the module does not register, so it would stay out of the "
                            "average: hold it in nn.ParameterList or nn.ParameterDict"
                        )


class Structure:
    """The entries of modules that hold tensors and modules, to notice what is added, replaced or taken out.

    Shards are left out, for FSDP2 exchanges them itself, and non-persistent buffers, which are caches.
    """

    def __init__(self, model: nn.Module) -> None:
        self._held: list[dict[str, Any]] = []
        self._keys: list[str] = []
        self._contents: list[Tensor | nn.Module] = []
        self._dicts: list[dict[str, Any]] = []
        for module in model.modules():
            self._dicts += [module._parameters, module._buffers, module._modules]
            for held in (module._parameters, module._buffers, module._modules):
                for key, content in held.items():
                    cache = held is module._buffers and key in module._non_persistent_buffers_set
                    sharded = isinstance(content, Tensor) and is_sharded(content)
                    if content is not None and not cache and not sharded:
                        self._held.append(held)
                        self._keys.append(key)
                        self._contents.append(content)
        self._sizes = [*map(len, self._dicts)]

    def unchanged(self) -> bool:
        """Whether every entry holds the same object. Asked at every update, hence without a loop in Python."""
        return all(map(operator.is_, map(dict.get, self._held, self._keys), self._contents)) and (
            [*map(len, self._dicts)] == self._sizes
        )


def own_profiles(patterns: Patterns) -> dict[str, Profile]:
    """The patterns that give parameters a profile of their own."""
    return {pattern: rule for pattern, rule in patterns.items() if isinstance(rule, Profile)}


def changes(
    before: Sequence[Followed], now: Selection
) -> tuple[list[Followed], list[Followed], list[tuple[Followed, Followed]]]:
    """(added, gone, [(before, now)] for what stays): the same tensor, or another one under the same name."""
    by_id = {id(f.tensor): f for f in before}
    by_name = {f.name: f for f in before}
    ids = {id(f.tensor) for f in now.followed}
    added, stays, matched = [], [], set()
    for f in now.followed:
        old = by_id.get(id(f.tensor))
        if old is None:
            named = by_name.get(f.name)
            old = named if named is not None and id(named.tensor) not in ids else None
        if old is None:
            added.append(f)
        else:
            stays.append((old, f))
            matched.add(id(old.tensor))
    return added, [f for f in before if id(f.tensor) not in matched], stays
