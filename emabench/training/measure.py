"""Measure every set of weights that a run carries: the raw weights and each average, on the same random draws."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from emabench.averaging import Averager, has_batchnorm, recalibrate
from emabench.config import Config
from emabench.metrics import own
from emabench.runs.directory import RunDirectory
from emabench.runs.result import RAW, Row, measured, parse_row, row_to_json
from emabench.seeding import seed_default
from emabench.tasks.base import Task, to_device
from emabench.training import environment
from emabench.training.distributed import Group
from emabench.training.interruption import StopRequest
from emabench.training.progress import Progress

LONG = 10.0  # seconds; a set of weights that took longer is kept on disk, in case the measurement is stopped


class Evaluator:
    """Puts sets of weights into the model, one after the other, and lets the task measure them."""

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        task: Task,
        model: nn.Module,
        averager: Averager,
        group: Group,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.config, self.directory, self.task = config, directory, task
        self.model, self.averager = model, averager
        self.group, self.device, self.progress = group, device, progress
        self._own = own.load(config.metrics, task.metrics)
        self.metrics = {name: str(direction) for name, direction in task.metrics.items()}
        self.metrics |= {name: module.better for name, module in self._own.items()}
        self.recalibrates = config.ema.buffers == "recompute" and has_batchnorm(model)

    def evaluate(self) -> dict[str, float]:
        """The metrics of the weights in place: the task's, then those of the user's own."""
        values = dict(self.task.evaluate())
        return values | {name: float(module.measure(self.task)) for name, module in self._own.items()}

    def profiles(self) -> dict[str, dict[str, Any]]:
        """Every set of weights by name, each with what its profile amounts to over the steps of the run."""
        result: dict[str, dict[str, Any]] = {RAW: {}}
        for name, profile in self.averager.profiles.items():
            try:
                description = profile.describe(self.config.steps)
            except ValueError:  # its weights depend on the gradients, or it is a mixture of other averages
                description = {}
            result[name] = profile.to_dict() | {"describe": description}
        return result

    def measure(
        self,
        step: int,
        stop: StopRequest,
        interrupted: Callable[[], BaseException],
        artifacts: bool = False,
        resumed: bool = False,
    ) -> list[Row]:
        """Measure every set of weights after `step` steps.

        Several processes share the sets out. Where the weights are sharded, all take part in each set; where each
        process has batch-norm statistics of its own, the main process measures alone.

        Args:
            step: Optimiser steps done.
            stop: Raises `interrupted()` at once when a signal comes.
            artifacts: Also save pictures, and weights where `log_weights` asks for them.
            resumed: No step was taken since the checkpoint: rows kept by a stopped measurement of it are used.
        """
        group, profiles = self.group, self.profiles()
        kept = self.directory.kept_rows(step) if group.is_main and resumed else {}
        kept = _parsed(group.broadcast(_texts({name: row for name, row in kept.items() if name in profiles})))
        missing = [name for name in profiles if name not in kept]
        shared_out = not group.sharded
        local_names = missing[group.rank :: group.world_size] if shared_out else missing
        if not group.same_batchnorm(self.model):
            local_names = missing if group.is_main else []
        writes = shared_out or group.is_main
        # The main process reports the interruption in its own words, the others stop at once.
        on_stop = interrupted if group.is_main else KeyboardInterrupt
        local_rows: dict[str, Row] = {}
        for name in local_names:
            self.progress.phase(f"step {step}/{self.config.steps}  measuring {name}")
            began = time.perf_counter()
            # The checkpoint of this step is already being written: nothing here must finish before the process ends.
            with stop.at_once(on_stop), self.in_place(name):
                local_rows[name] = measured(name, profiles[name], self.evaluate())
                if artifacts and writes:
                    self._save_artifacts(name)
            if writes and time.perf_counter() - began > LONG:
                self.directory.keep_row(step, local_rows[name])
        rows: dict[str, Row] = {}
        for each in reversed(group.gather_objects(_texts(local_rows))):  # the lowest rank wins
            rows |= _parsed(each)
        rows |= kept
        if group.is_main:
            self.directory.forget_rows()
        return [rows[name] for name in profiles]

    def _save_artifacts(self, name: str) -> None:
        folder = self.directory.artifacts / name
        folder.mkdir(parents=True, exist_ok=True)
        self.task.save_artifacts(folder)
        if self.config.log_weights and self.config.log != "none":
            folder = self.directory.exported / name
            folder.mkdir(parents=True, exist_ok=True)
            self.task.export(folder)

    @contextmanager
    def in_place(self, name: str) -> Iterator[None]:
        """One set of weights in the model, in eval mode, with its batch-norm statistics; restored afterwards."""
        with self.averager.applied(name) if name != RAW else nullcontext(), self._ready(name != RAW):
            yield

    @contextmanager
    def loaded(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """The same for weights that the run did not carry (a `state_dict`)."""
        own = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(weights)
        try:
            with self._ready(averaged=True):
                yield
        finally:
            self.model.load_state_dict(own)

    @contextmanager
    def _ready(self, averaged: bool) -> Iterator[None]:
        """Eval mode, no gradients, the evaluation's random state; batch-norm statistics recomputed if averaged."""
        with torch.no_grad():
            seed_default(self.config.seed, "evaluate", 0, self.device)
            if averaged and self.recalibrates:
                with self.group.local_batchnorm(self.model):
                    inputs = self.task.calibration() or ()
                    recalibrate(self.model, (to_device(each, self.device) for each in inputs))
            self.model.eval()
            try:
                with environment.autocast(self.device, self.config.precision):
                    yield
            finally:
                self.model.train()


def _texts(rows: Mapping[str, Row]) -> dict[str, str]:
    return {name: row_to_json(row) for name, row in rows.items()}


def _parsed(texts: Mapping[str, str]) -> dict[str, Row]:
    return {name: parse_row(text) for name, text in texts.items()}
