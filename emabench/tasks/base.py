"""What the trainer asks of a task, and what it hands to one.

A task is one file in `emabench/tasks/` that defines `Options` (its section of the configuration) and `Task`,
and one YAML of the same name in `conf/task/`. It is found by that name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
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
    """An optimiser with the run's schedule, clipping and precision: one call is one optimiser step."""

    def step(self, loss: Tensor, step: int) -> Tensor | None:
        """Clear gradients, run `loss` backward, clip, set the scheduled rate of `step` (counted from 0) and step.

        Returns the gradient's total norm before clipping (0-d tensor, detached), None where nothing is
        clipped. The averages are not updated here: that is the trainer's, once a `train_step`.
        """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Context:
    """What a task is given of the run that it is part of."""

    seed: int
    steps: int  # length of the whole training, in optimiser steps
    batch_size: int
    device: torch.device
    data_dir: Path  # where data sets are looked for and downloaded to
    cache_dir: Path  # what a task computes once for all runs (feature extractors, tokenised text)
    workers: int  # processes that decode data, 0 for none
    autocast: Callable[[], AbstractContextManager[Any]]  # forward passes run inside it
    optimizer: Callable[[Iterable[nn.Parameter] | Iterable[dict[str, Any]]], Optimizer]
    decay: float | None  # decay of the target network of an active task; None for passive ones
    progress: Callable[[str], None]  # one line to the user about something slow
    rank: int  # of this process among the `world_size` that shard each batch
    world_size: int
    # (module, synchronise_batchnorm=True) → what to call in training, so that gradients are the mean over processes.
    # The module itself is what is averaged, saved and measured. To be called before the optimiser is made.
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


class Task(ABC):
    """What is trained, and how it is measured.

    The constructor is `Task(options, context)`: it builds data, model and optimiser on `context.device`.
    Initial weights are drawn under the seed that the trainer has set, so construct modules in a fixed order.
    """

    metrics: ClassVar[
        Mapping[str, Direction]
    ]  # every metric that `evaluate` returns; the first is the main one

    # In which ways several processes can train it: "ddp" where `train_step` takes its shard of the batch (see
    # `Context.shard`, `Context.parallel`), "fsdp" where it also looks at no weights by itself.
    parallel: ClassVar[frozenset[str]] = frozenset()

    @classmethod  # noqa: B027 - most tasks refuse nothing more
    def check(cls, options: Any, batch_size: int) -> None:
        """What the constructor would refuse and takes no time to find: asked of all runs before the first begins."""

    @property
    def measured_with(self) -> Mapping[str, str]:
        """By metric, what it was measured with where that decides comparability ("inception-v3, 50000 samples").

        Two values of a metric are set beside each other only where this text is the same.
        """
        return {}

    @abstractmethod
    def averaged(self) -> nn.Module:
        """The module that the averages follow; its weights are the ones `evaluate` uses."""

    def compiled(self) -> Sequence[nn.Module]:
        """The modules whose forward passes `compile=true` compiles."""
        return [self.averaged()]

    @abstractmethod
    def train_step(self, step: int) -> Mapping[str, Tensor | float]:
        """One optimiser step, a pure function of (state, seed, step); `step` counts from 0.

        Returns scalars to log, `loss` among them (0-d tensors stay on the device until they are logged).
        """

    @abstractmethod
    def evaluate(self) -> Mapping[str, float]:
        """Metrics of whatever weights are in place; the same random draws for every set of weights.

        Leaves training state untouched. The trainer calls it inside eval mode and `torch.no_grad()`.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that training depends on and that cannot be derived from (seed, step): tensors and plain values."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def calibration(self) -> Iterable[Any] | None:
        """Training inputs from which batch-norm statistics of averaged weights are recomputed; None if none."""
        return None

    def references(self) -> Mapping[str, float]:
        """Floors and ceilings that put the metrics in proportion (`is_real`, `fid_real_halves`)."""
        return {}

    def save_artifacts(self, directory: Path) -> None:  # noqa: B027 - most tasks have none
        """Pictures or samples of the weights just evaluated, called right after `evaluate`."""

    def export(self, directory: Path) -> None:
        """Save the weights in place in the field's own format (a diffusers pipeline, a state_dict)."""
        torch.save(self.averaged().state_dict(), directory / "weights.pt")
