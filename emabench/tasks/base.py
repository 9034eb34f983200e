"""The contract between the trainer and a task.

A task is `tasks/NAME.py` (or a package `tasks/NAME/`) with two classes, `Options` and `Task`, and `conf/task/NAME.yaml`
with the values of `Options` at each scale. Both are found by that name. `emabench test task NAME` runs the test suite
that every task has to pass.

**Options**, a `config.Section` (a typed pydantic model): the keys below `task:` in the YAML. A wrong value is
refused before the task is built.

**The YAML** also sets what the task supports, which is read without importing the task:

    task_version: 1                      # raise it whenever the task's numbers change: it is part of run_id
    supports:
      precision: [fp32, bf16, fp16]      # default: all
      parallel: [ddp]                    # with devices=2 and more; default []: one process only

**Task**, a subclass of `Task` below. Required:

    metrics                              every metric with the direction in which it is better; the first is the main one
    __init__(options, context)           build data, model and optimiser
    averaged() -> nn.Module              what the averages follow
    train_step(batch, step) -> scalars   one optimiser step
    evaluate() -> {metric: float}        measure the weights in place
    state_dict(), load_state_dict(state) what a checkpoint holds

Optional, with defaults that suit many tasks:

    batch(step)                          the training data of a step, which the trainer moves to the device
    check(options, batch_size)           refuse a combination of options quickly
    units                                the unit of each metric (%, per word)
    measured_with                        the protocol of each metric, where it decides what may be compared
    calibration()                        inputs for recomputing batch-norm statistics
    compiled()                           modules for compile=true
    references()                         floors and ceilings of the metrics
    save_artifacts(directory)            pictures or samples of each set of weights
    export(directory)                    the weights in the field's own format

The order of calls, where a resumed run calls `load_state_dict` first:

    for step in range(steps):
        train_step(batch(step), step)                       # autocast to `precision`; then the averages are updated
        if evaluation is due:                               # every `evaluate.every` steps and after the last
            for weights in (raw, *averages):                # swapped into averaged()
                recompute batch norm from calibration()     # averages only, for ema.buffers=recompute
                evaluate()                                  # eval mode, no_grad, autocast
                save_artifacts(directory)                   # after the last step only
    references()                                            # once, after the last evaluation

A task needs no code for resuming, precision, devices, logging or averages, and it must not keep what it draws from
anywhere but `context.generator(purpose, step)` or torch's default generator, which the trainer seeds before each step
and each evaluation. So a run that is stopped anywhere and resumed is bit-identical to one that is not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from emabench import seeding
from emabench.errors import UserError


def option_error(key: str, value: object, fix: str) -> UserError:
    """The error to raise for a value of `task.KEY` that only the task can judge; `fix` says what is right."""
    return UserError(f"task.{key}={value}: {fix}")


class Direction(StrEnum):
    """Which way a metric is better."""

    LOWER = "lower"
    HIGHER = "higher"


class Optimizer(Protocol):
    """An optimiser with the run's schedule, clipping and loss scale: one call is one optimiser step."""

    def step(self, loss: Tensor, step: int) -> Tensor | None:
        """Zero the gradients, run `loss` backward, clip, set the learning rate of `step` and step.

        The averages are not updated here: the trainer does that once per `train_step`.

        Args:
            loss: 0-d tensor, the mean over this process's shard of the batch.
            step: Optimiser steps done before this one.

        Returns:
            The gradient's total norm before clipping (0-d tensor, detached); None without `clip.max_norm`.
        """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Context:
    """What a task is given of the run that it is part of."""

    seed: int
    steps: int  # length of the training, in optimiser steps
    batch_size: int  # of all processes together
    device: torch.device
    data_dir: Path  # where data sets are looked for and downloaded to
    cache_dir: Path  # for what a task computes once for all runs (feature extractors, tokenised text)
    workers: int  # data-loading processes, 0 for none
    optimizer: Callable[[Iterable[nn.Parameter] | Iterable[dict[str, Any]]], Optimizer]
    decay: float | None  # of the target network of an active task (`ema.active: true`); None for passive ones
    progress: Callable[[str], None]  # print one line about something slow
    rank: int  # of this process among the `world_size` that shard each batch
    world_size: int
    # (module, synchronise_batchnorm=True) → the module to call in training, whose gradients are the mean over processes.
    # The given module is still the one to average, save and evaluate. Call it before the optimiser is made.
    parallel: Callable[..., nn.Module]
    all_gather: Callable[..., Tensor]  # (shard, dim=0) → the shards of all processes, concatenated; detached
    all_reduce_mean: Callable[[Tensor], Tensor]  # over processes, detached

    def generator(self, purpose: str, step: int = 0, device: str | torch.device = "cpu") -> torch.Generator:
        """A generator for one purpose at one step of this run."""
        return seeding.generator(self.seed, purpose, step, device)

    def shard(self, batch: Tensor, dim: int = 0) -> Tensor:
        """This process's part of a whole batch. Draw for all, then shard: the training is the same for any world size."""
        size = batch.shape[dim] // self.world_size
        return batch.narrow(dim, self.rank * size, size)

    def to_device(self, batch: Any) -> Any:
        """Move the tensors of a batch to the device, asynchronously: a tensor, or
        tuples, lists, dicts and dataclasses of them.

        For evaluation data; the trainer does it for `Task.batch` and `Task.calibration`.
        """
        return to_device(batch, self.device)


def to_device(batch: Any, device: torch.device) -> Any:
    """`Context.to_device`. Other values are returned as they are."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(to_device(value, device) for value in batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{f.name: to_device(getattr(batch, f.name), device) for f in fields(batch)})
    return batch


class Task(ABC):
    """What is trained, and how it is measured. The module's docstring has the whole contract.

    The constructor is `Task(options, context)`. It builds data, model and optimiser; the model goes to
    `context.device`. torch's default generator is seeded before it, so construct modules in a fixed order.
    """

    metrics: ClassVar[Mapping[str, Direction]]
    """Every metric that `evaluate` returns after the last step. The first is the main one."""

    @classmethod  # noqa: B027 - most tasks refuse nothing more
    def check(cls, options: Any, batch_size: int) -> None:
        """Refuse options that do not fit together, without loading data. Called before the first of several runs.

        Raises:
            UserError: See `option_error`.
        """

    @classmethod
    def imports(cls, options: Any) -> Mapping[str, str]:
        """Options, by key, whose value makes a library import a module: code that a user has to name.

        Commands that are given a run take such a value from its `config.yaml` only where the user repeats it.
        """
        return {}

    @property
    def measured_with(self) -> Mapping[str, str]:
        """The protocol of each metric where it decides comparability ("Inception-v3, 50000 samples").

        Values of a metric are compared only where this text is equal.
        """
        return {}

    @property
    def units(self) -> Mapping[str, str]:
        """The unit of each metric that has one ("%", "nats per character", "per word"); shown with its values.

        Part of what the metric is: values in different units are not compared, even under the same name.
        """
        return {}

    @abstractmethod
    def averaged(self) -> nn.Module:
        """The module that the averages follow; `evaluate` measures its weights. Always the same object."""

    def compiled(self) -> Sequence[nn.Module]:
        """The modules whose forward passes `compile=true` compiles, in place."""
        return [self.averaged()]

    def batch(self, step: int) -> Any:
        """This process's shard of the training data of a step: a pure function of (seed, step).

        Returns:
            Tensors, or tuples, lists, dicts and dataclasses of them; on any device. None where `train_step` makes its own data.
        """
        return None

    @abstractmethod
    def train_step(self, batch: Any, step: int) -> Mapping[str, Tensor | float]:
        """Take one optimiser step: a pure function of (state, seed, step). Called in train mode, inside autocast.

        Args:
            batch: What `batch(step)` returned, on `context.device`.
            step: Optimiser steps done before this one.

        Returns:
            Scalars to log, `loss` among them. 0-d tensors may stay on the device; they are read when logged.
        """

    @abstractmethod
    def evaluate(self) -> Mapping[str, float]:
        """Measure the weights in place, with the same random draws for every set of weights.

        Called in eval mode, inside `torch.no_grad()` and autocast. Leaves the training state untouched, and does not
        depend on `batch_size`. Metrics that take long may be left out before the last step, never the main one.

        Returns:
            {metric: value}, the values in `units`.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that training depends on and that does not follow from (seed, step): tensors and plain values.

        Of several processes each returns the same: what they shard is gathered with `context.all_gather`.
        """

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. Its tensors are on the CPU."""

    def calibration(self) -> Iterable[Any] | None:
        """Training inputs from which batch-norm statistics of averaged weights are recomputed.

        Returns:
            Batches on any device: a tensor, or the first item of a tuple, is passed to `averaged()`, a mapping as
            keywords. None without batch norm.
        """
        return None

    def references(self) -> Mapping[str, float]:
        """Floors and ceilings that put the metrics in proportion (`is_real`, `chance_accuracy`), by name."""
        return {}

    def save_artifacts(self, directory: Path) -> None:  # noqa: B027 - most tasks have none
        """Save pictures or samples of the weights that were just evaluated. Called right after `evaluate`."""

    def export(self, directory: Path) -> None:
        """Save the weights in place in the field's own format (a diffusers pipeline, a state_dict)."""
        torch.save(self.averaged().state_dict(), directory / "weights.pt")
