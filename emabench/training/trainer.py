"""The one loop that trains every task, and the state that a checkpoint holds."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from emabench.averaging import Averager, NotFinite
from emabench.config import Config
from emabench.errors import Interrupted, RunFailed
from emabench.runs.directory import RunDirectory
from emabench.runs.history import History, NoHistory, seal
from emabench.runs.result import Result, Row, Status, parse_result, to_json
from emabench.runs.tracking import NoTracker, Tracker, tracker
from emabench.seeding import seed_default
from emabench.tasks.base import to_device
from emabench.training import checkpoint, environment, snapshots
from emabench.training.build import build_task
from emabench.training.distributed import Group
from emabench.training.interruption import StopRequest
from emabench.training.measure import Evaluator
from emabench.training.optimizer import ScheduledOptimizer
from emabench.training.progress import Progress
from emabench.training.schedule import factor


class Trainer:
    """One trajectory, from its latest checkpoint to its end. `state` is exactly what a checkpoint holds."""

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        stop: StopRequest,
        group: Group | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.config, self.directory, self.stop, self.group = config, directory, stop, group or Group()
        environment.make_deterministic()
        self.device = device or environment.resolve_device(config.device)
        name = f"{config.task_name}/{config.run_id()}"
        self.progress = Progress(name, config.steps, quiet=not self.group.is_main)
        self.optimizers: list[ScheduledOptimizer] = []
        self.task = build_task(config, self.device, self.progress, self.group, self.optimizers)
        self.model = self.task.averaged()
        if config.compile:
            for module in self.task.compiled():
                module.compile()  # in place: parameter names stay the same
        sizes = {"steps": config.steps, "batch_size": config.batch_size}
        profiles = {name: profile.bound(**sizes) for name, profile in config.profiles().items()}
        self.averager = Averager(
            self.model, profiles, buffers=config.ema.buffers, compensated=config.ema.compensated
        )
        self.evaluator = Evaluator(
            config, directory, self.task, self.model, self.averager, self.group, self.device, self.progress
        )
        self.step = 0  # optimiser steps done
        self.resumed_at = 0  # `step` when this process resumed the run
        self.sums: dict[str, Tensor | float] = {}  # of the scalars since the last history line
        self.summed = 0  # steps in `sums`
        self.seconds = {"train_s": 0.0, "averaging_s": 0.0, "evaluate_s": 0.0}
        self.checkpoints = checkpoint.Writer(directory.checkpoints, config.checkpoint.keep)
        self.saved_at = time.monotonic()
        self.lost_lines = 0  # of the history: what a checkpoint relies on and is not in the file
        self.numerics_changes: list[str] = []  # where a resumed run computes differently
        self.expected: Mapping[str, Any] = {"lines": 0, "measured": []}  # of the history, by the checkpoint
        self.history: History
        self.tracker: Tracker
        self._resume()

    # -- the loop -----------------------------------------------------------------------------------------------

    def train(self, until: int) -> str | None:
        """Take steps until `until` are done. Returns None, or what was not finite and when: the run has diverged."""
        config, every = self.config, self.config.snapshots.every
        self.model.train()
        self.saved_at = time.monotonic()
        if self._evaluation_due() and self.step not in self.history.measured:
            self._record(self._measure())  # stopped between the checkpoint and the measurement
        while self.step < until:
            scalars, not_finite = self._train_step()
            # What only one process knows: a signal, the main one's clock, a value that is not finite in its shard.
            by_clock = (
                self.group.is_main and time.monotonic() - self.saved_at > 60 * config.checkpoint.minutes
            )
            stop, by_clock, failed = self.group.any_rank(bool(self.stop), by_clock, not_finite is not None)
            if failed:
                return next(filter(None, self.group.gather_objects(not_finite)))
            self.step += 1
            self._accumulate(scalars)

            last = self.step == config.steps
            evaluate = self._evaluation_due()
            by_step = config.checkpoint.every and self.step % config.checkpoint.every == 0
            save = last or evaluate or by_step or by_clock or stop
            log = last or self.step % config.log_every == 0
            if every and (last or self.step % every == 0):
                snapshots.save(self.directory.snapshots, self.averager, self.step, self.group)
            if log or save:
                means = self._means()  # waits for the device
                if bad := next((name for name, value in means.items() if not math.isfinite(value)), None):
                    return f"{bad} was not finite within the {self.summed} steps up to step {self.step}"
                if log:
                    self._log(means)
                if save:
                    self._save()  # never a state that is not finite
            if evaluate:
                self._record(self._measure())
            if stop:
                raise self._interrupted()
        return None

    def _train_step(self) -> tuple[Mapping[str, Tensor | float], str | None]:
        """One optimiser step and one update of the averages. Returns scalars, and what was not finite (or None)."""
        began = time.perf_counter()
        # Dropout and the like draw from torch's default generator: derive its state from the step as well.
        purpose = f"step of {self.group.rank}" if self.group.rank else "step"
        seed_default(self.config.seed, purpose, self.step, self.device)
        batch = to_device(self.task.batch(self.step), self.device)
        with environment.autocast(self.device, self.config.precision):
            scalars = self.task.train_step(batch, self.step)
        if self.device.type == "cuda" and self.averager.names:
            torch.cuda.synchronize(self.device)  # an update waits anyway; the time belongs to the step
        trained = time.perf_counter()
        not_finite = None
        try:
            if not any(optimizer.skipped for optimizer in self.optimizers):
                self.averager.update()
        except NotFinite as error:  # the averages are unchanged
            not_finite = str(error)
        self.seconds["train_s"] += trained - began
        self.seconds["averaging_s"] += time.perf_counter() - trained
        return scalars, not_finite

    def _evaluation_due(self) -> bool:
        """Whether `evaluate.every` asks for a measurement after this step. The one after the last step is separate."""
        every = self.config.evaluate.every
        return bool(every and self.step and self.step % every == 0 and self.step < self.config.steps)

    def _accumulate(self, scalars: Mapping[str, Tensor | float]) -> None:
        for name, value in scalars.items():
            detached = value.detach() if isinstance(value, Tensor) else value
            self.sums[name] = self.sums.get(name, 0.0) + detached
        self.summed += 1

    def _means(self) -> dict[str, float]:
        """The scalars' means since the last history line, over steps and processes."""
        return self.group.mean_scalars(
            {name: float(value) / self.summed for name, value in self.sums.items()}
        )

    def _log(self, means: dict[str, float]) -> None:
        rate = factor(self.config.schedule, self.step - 1, self.config.steps)
        means["lr"] = self.config.optimizer.lr * rate
        wall = self.seconds["train_s"] + self.seconds["averaging_s"]
        self.history.add(step=self.step, wall=round(wall, 3), **means)
        self.tracker.log(self.step, means)
        self.progress.update(self.step, means)
        self.sums, self.summed = {}, 0

    def _measure(self, artifacts: bool = False) -> list[Row]:
        began = time.perf_counter()
        resumed = self.step == self.resumed_at
        rows = self.evaluator.measure(self.step, self.stop, self._interrupted, artifacts, resumed)
        self.seconds["evaluate_s"] += time.perf_counter() - began
        return rows

    def _record(self, rows: list[Row]) -> None:
        if self.step not in self.history.measured:
            self.history.measured.add(self.step)
            self.history.add(step=self.step, eval={row.average: dict(row.metrics) for row in rows})
            self.tracker.measure(self.step, rows)

    def _interrupted(self) -> Interrupted:
        return Interrupted(
            f"{self.directory.path}: stopped at step {self.step} of {self.config.steps}; "
            "the same command resumes from there"
        )

    # -- from begin to result -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Open the files and the tracker that are written along the run."""
        is_main = self.group.is_main
        self.history = History(self.directory.history, self.step) if is_main else NoHistory()
        self._check_history()
        self.history.measured = set(self.group.broadcast(sorted(self.history.measured)))
        self.tracker = tracker(self.config, self.directory, self.progress.say) if is_main else NoTracker()
        if 0 < self.step < self.config.steps:
            self.progress.say(f"{self.directory.path}: resumes from step {self.step}")
        self.progress.start(self.step)

    def _check_history(self) -> None:
        """Report what the history has lost: it is deleted, cut or damaged more easily than a checkpoint."""
        if not self.group.is_main:
            return
        lines = max(0, self.expected["lines"] - self.history.trained)
        missing = lines + len(set(self.expected["measured"]) - self.history.measured)
        if missing:
            self.lost_lines += missing
            self.progress.say(
                f"{self.directory.history}: {missing} lines before step {self.step} are missing or damaged; "
                "what is shown along the run has gaps, its result has none"
            )

    def result(self) -> Result:
        """Train to the end and measure every set of weights."""
        result = None
        self.begin()
        try:
            diverged = self.train(self.config.steps)
            if diverged:
                rows = self._rows_without_values(diverged)
            else:
                rows = self._measure(artifacts=True)
                self._record(rows)
                main = next(iter(self.task.metrics))
                if why := rows[0].reasons.get(main):  # finite losses, but weights that cannot be measured
                    diverged = f"{main} of the {rows[0].average} weights {why}"
            self.checkpoints.join()  # a result needs the state that it was measured from on the disk
            status: Status = "diverged" if diverged else "finished"
            local_result = to_json(self._result(status, diverged, rows)) if self.group.is_main else ""
            result = parse_result(self.group.broadcast(local_result), str(self.directory.result_file))
            return result
        finally:
            try:
                self.checkpoints.join()  # "stopped at step n" promises that step n is on the disk
            finally:
                self.tracker.finish(result)
                self.progress.close()
                self.history.close()

    def _rows_without_values(self, reason: str) -> list[Row]:
        metrics = self.evaluator.metrics
        return [
            Row(name, profile, dict.fromkeys(metrics), dict.fromkeys(metrics, reason))
            for name, profile in self.evaluator.profiles().items()
        ]

    def _result(self, status: Status, reason: str | None, rows: list[Row]) -> Result:
        task, config = self.task, self.config
        return Result(
            run_id=config.run_id(),
            task=config.task_name,
            scale=config.scale,
            seed=config.seed,
            steps=config.steps,
            status=status,
            reason=reason,
            rows=tuple(rows),
            metrics=self.evaluator.metrics,
            measured_with=dict(task.measured_with),
            units=dict(task.units),
            references=dict(task.references()),
            timing={name: round(value, 3) for name, value in self.seconds.items()},
            environment=environment.describe(config, self.device, self.group.world_size)
            | self._irregularities(),
        )

    def _irregularities(self) -> dict[str, Any]:
        """For the result's environment: what makes the run not quite the one that was never stopped.

        `history` tells readers whether the file beside the result is still the one that the run wrote.
        """
        entries: dict[str, Any] = {"averages": self.averager.arithmetic}
        if self.numerics_changes:
            entries["changed_on_resume"] = self.numerics_changes
        if self.lost_lines:
            entries["history_lines_lost"] = self.lost_lines
        entries["history"] = seal(self.directory.history)
        return entries

    # -- state --------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds, complete in the main process. Collective: every process has to call it."""
        return {
            "task": self.group.full_tensor(self.task.state_dict()),
            "averager": self.group.full_tensor(self.averager.state_dict()),
            "sums": self.group.mean_scalars({name: float(value) for name, value in self.sums.items()}),
            "summed": self.summed,
            "seconds": self.seconds,
            "step": self.step,
            "history": {"lines": self.history.trained, "measured": sorted(self.history.measured)},
            "lost_lines": self.lost_lines,
            "numerics": environment.numerics(self.device, self.averager.arithmetic),
            "numerics_changes": self.numerics_changes,
        }

    def _save(self) -> None:
        # Written in a thread while training continues; the history up to this step is on the disk before it.
        state = self.state()
        if self.group.is_main:
            self.checkpoints.save(self.step, state, first=self.history.sync)
        self.saved_at = time.monotonic()

    def _resume(self) -> None:
        latest = checkpoint.load_latest(self.directory.checkpoints, self.progress.say)
        local_step = latest[0] if latest else 0
        step = self.group.broadcast(local_step)
        if step != local_step:
            raise RunFailed(
                f"{self.directory.checkpoints}: a process does not see the checkpoint of step {step}"
            )
        if not latest:
            return
        self.step, state = latest
        self.resumed_at = self.step
        try:
            self.expected = state.get("history", self.expected)
            self.lost_lines = state.get("lost_lines", 0)
            self._check_numerics(state)
            self.task.load_state_dict(self.group.shard(state["task"], own=self.task.state_dict()))
            self.averager.load_state_dict(state["averager"])
            self.sums, self.summed, self.seconds = state["sums"], state["summed"], state["seconds"]
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            # Whatever rerun=true had begun is of no use either.
            self.directory.rerun_begun.unlink(missing_ok=True)
            raise RunFailed(
                f"{self.directory.checkpoints}: the checkpoint of step {self.step} belongs to another run or to another "
                f"version ({type(error).__name__}: {' '.join(str(error).split())[:200]}); rerun=true starts over"
            ) from error

    def _check_numerics(self, state: Mapping[str, Any]) -> None:
        """Report where this process computes otherwise than the one that wrote the checkpoint."""
        now = environment.numerics(self.device, self.averager.arithmetic)
        changed = environment.changes(state.get("numerics", {}), now)
        self.numerics_changes = state.get("numerics_changes", []) + [
            f"step {self.step}: {change}" for change in changed
        ]
        if changed:
            self.progress.say(
                f"{self.directory.path}: resumed with {'; '.join(changed)}. The result may differ in its last digits "
                "from that of a run that was never stopped"
            )
