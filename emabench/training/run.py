"""One run: train a task along one trajectory, carry its averages, measure each of them, write `result.json`.

To resume, run the same command again: the state is taken from the latest whole checkpoint, every random draw
is a function of (seed, purpose, step), so the rest goes as it would have gone.
"""

from __future__ import annotations

import functools
import math
import os
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emabench import tasks
from emabench.averaging import Averager, NotFinite, has_batchnorm, recalibrate
from emabench.config import Config, checked
from emabench.errors import Interrupted, RunFailed, UserError
from emabench.paths import cache_dir
from emabench.runs.directory import RunDirectory
from emabench.runs.files import FULL, NoRoom, no_room
from emabench.runs.history import History, NoHistory
from emabench.runs.result import RAW, Result, Row, Status, measured
from emabench.runs.tracking import NoTracker, Tracker, tracker
from emabench.seeding import seed_default
from emabench.tasks.base import Context, Task
from emabench.training import checkpoint, distributed, environment, several, snapshots
from emabench.training.distributed import Group
from emabench.training.interruption import StopRequest, stop_requests, stop_without
from emabench.training.optimizer import ScheduledOptimizer
from emabench.training.progress import Progress
from emabench.training.schedule import factor

ALONE = Group()
LONG = 10.0  # seconds; what took longer to measure is kept, should the measurement be stopped before its end


def run(config: Config) -> Result:
    """The result of this configuration: what is there already, or what training it (on) gives.

    Raises UserError (nothing was lost), Interrupted (resumable), RunFailed (`result.json` says "failed").
    """
    if place := distributed.place_of_torchrun():
        stop_without(os.getppid())
        return run_at(config, place)
    if config.devices > 1:
        return several.run(config)
    return _run(config, ALONE, environment.resolve_device(config.device))


def run_at(config: Config, place: distributed.Place) -> Result:
    """The same, as one process of several that all call this. Each gets the result."""
    several.check(config, place.world)
    with distributed.together(place, config.device, config.parallel == "fsdp") as (group, device):
        return _run(config, group, device)


def _run(config: Config, group: Group, device: torch.device) -> Result:
    directory = RunDirectory(config.directory())
    with _held(config, directory, group) as there:
        if there:
            return there
        group.on_failure = lambda why: _write_failure(config, directory, RunFailed(why.text), why.trace)
        try:
            with explained(directory), stop_requests() as stop:
                result = Training(config, directory, stop, group, device).result()
                if group.first:
                    directory.write_result(result)
        except RunFailed as error:
            why = group.reason()  # another process may have been first: then this one only noticed
            if why and why.kind != "failed":
                raise why.error() from error
            if group.first:
                cause = RunFailed(why.text) if why else error.__cause__ or error
                _write_failure(config, directory, cause, why.trace if why else traceback.format_exc())
            raise RunFailed(why.text if why else f"{error}; see {directory.error}") from error
        if group.first:
            directory.error.unlink(missing_ok=True)
        return result


@contextmanager
def _held(config: Config, directory: RunDirectory, group: Group) -> Iterator[Result | None]:
    """The run's directory, prepared and locked by the first process for all; and the result that is there already."""
    with ExitStack() as stack:
        there = None
        if group.first:
            stack.enter_context(directory.locked())
            directory.prepare(config)
            if config.rerun and not directory.rerun_begun.exists():
                with directory.anew():
                    pass
            there = directory.result()
            if there and there.status == "failed":  # it is tried again
                directory.result_file.unlink()
                directory.error.unlink(missing_ok=True)
                there = None
        yield group.from_first(there)


def _write_failure(config: Config, directory: RunDirectory, cause: BaseException, trace: str) -> None:
    with suppress(OSError):  # a full disk: what is there stays, and the reason is said all the same
        directory.error.write_text(trace)
        directory.write_result(_failed(config, cause))


def restored(config: Config, directory: RunDirectory) -> Training:
    """A run as its latest checkpoint has it. Raises UserError where there is none."""
    training = Training(config, directory, StopRequest())
    if not training.step:
        raise UserError(f"{directory.path}: has no whole checkpoint; train it with `emabench …` first")
    return training


@contextmanager
def explained(directory: RunDirectory) -> Iterator[None]:
    """Whatever goes wrong with a run's files, data or task, as RunFailed: why, with the mend where there is one."""
    again = "the same command goes on from the last checkpoint"
    try:
        yield
    except (UserError, Interrupted, RunFailed):
        raise
    except Exception as error:
        why = f"{directory.path}: {type(error).__name__}: {error}"
        if isinstance(error, OSError) and error.errno in FULL:
            full = str(error) if isinstance(error, NoRoom) else no_room(directory.path, None, error)
            why = f"{full}; make room (checkpoint.keep=1 needs less), and {again}"
        elif isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            why = (
                f"{directory.path}: a process that reads data died, killed or out of memory; try fewer of them "
                f"(workers=…, 0 for none), and {again} ({' '.join(str(error).split())})"
            )
        raise RunFailed(why) from error


def _failed(config: Config, error: BaseException) -> Result:
    """A result that says why there is none. It does not count as finished: the same command tries again."""
    return Result(
        run_id=config.run_id(),
        task=config.task_name,
        scale=config.scale,
        seed=config.seed,
        steps=config.steps,
        status="failed",
        reason=f"{type(error).__name__}: {error}",
        rows=(),
        metrics={},
        measured_with={},
        references={},
        timing={},
        environment=environment.describe(config, torch.device("cpu")),
    )


def build_task(
    config: Config,
    device: torch.device,
    progress: Progress,
    group: Group = ALONE,
    optimizers: list[ScheduledOptimizer] | None = None,
) -> Task:
    """The task of a configuration, with the initial weights that its seed gives; its optimisers join the list."""
    module = tasks.load(config.task_name)
    options = checked(module.Options, config.task, at="task")
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
    context = Context(
        seed=config.seed,
        steps=config.steps,
        batch_size=config.batch_size,
        device=device,
        data_dir=Path(config.data_dir),
        cache_dir=cache_dir(),
        workers=config.workers,
        autocast=functools.partial(torch.autocast, device.type, dtype) if dtype else nullcontext,
        optimizer=functools.partial(_optimizer, config, device, [] if optimizers is None else optimizers),
        decay=config.decays()[0] if config.ema.active else None,
        progress=progress.say,
        rank=group.rank,
        world=group.world,
        parallel=functools.partial(_parallel, config, group),
        joined=group.joined,
        mean=group.mean,
    )
    seed_default(config.seed, "init", 0, device)
    return module.Task(options, context)


def _optimizer(
    config: Config, device: torch.device, made: list[ScheduledOptimizer], params: Any
) -> ScheduledOptimizer:
    made.append(ScheduledOptimizer(params, config, device))
    return made[-1]


def _parallel(config: Config, group: Group, module: nn.Module, **options: bool) -> nn.Module:
    """`Context.parallel`, after which no weight changes its layout."""
    if config.channels_last:
        module.to(memory_format=torch.channels_last)
    return group.parallel(module, **options)


class Training:
    """One trajectory from where it stands to its end. The parts that change are exactly what a checkpoint holds."""

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        stop: StopRequest,
        group: Group | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.config, self.directory, self.stop, self.group = config, directory, stop, group or ALONE
        environment.make_deterministic()
        self.device = device or environment.resolve_device(config.device)
        name = f"{config.task_name}/{config.run_id()}"
        self.progress = Progress(name, config.steps, quiet=not self.group.first)
        self.optimizers: list[ScheduledOptimizer] = []
        self.task = build_task(config, self.device, self.progress, self.group, self.optimizers)
        self.model = self.task.averaged()
        if config.compile:
            for module in self.task.compiled():
                module.compile()  # in place: names of parameters stay as they are
        sizes = {"steps": config.steps, "batch_size": config.batch_size}
        profiles = {name: profile.bound(**sizes) for name, profile in config.profiles().items()}
        self.averager = Averager(
            self.model, profiles, buffers=config.ema.buffers, compensated=config.ema.compensated
        )
        self.recalibrates = config.ema.buffers == "recompute" and has_batchnorm(self.model)
        self.step = 0  # optimiser steps done
        self.resumed = 0  # those that were done when this process took the run up
        self.sums: dict[str, Tensor | float] = {}  # of the scalars since the last history line
        self.summed = 0
        self.seconds = {"train_s": 0.0, "averaging_s": 0.0, "evaluate_s": 0.0}
        self.checkpoints = checkpoint.Writer(directory.checkpoints, config.checkpoint.keep)
        self.history: History
        self.tracker: Tracker
        self._resume()

    # -- state --------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds, whole in the first process; of several, all have to ask for it."""
        return {
            "task": self.group.whole(self.task.state_dict()),
            "averager": self.group.whole(self.averager.state_dict()),
            "sums": self.group.means({name: float(value) for name, value in self.sums.items()}),
            "summed": self.summed,
            "seconds": self.seconds,
        }

    def _resume(self) -> None:
        found = checkpoint.load_latest(self.directory.checkpoints, self.progress.say)
        step = self.group.from_first(found[0] if found else 0)
        if step != (found[0] if found else 0):
            raise RunFailed(
                f"{self.directory.checkpoints}: a process does not see the checkpoint of step {step}"
            )
        if not found:
            return
        self.step, state = found
        self.resumed = self.step
        try:
            self.task.load_state_dict(self.group.parted(state["task"], own=self.task.state_dict()))
            self.averager.load_state_dict(state["averager"])
            self.sums, self.summed, self.seconds = state["sums"], state["summed"], state["seconds"]
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            # What rerun=true had begun is of no use either.
            self.directory.rerun_begun.unlink(missing_ok=True)
            raise RunFailed(
                f"{self.directory.checkpoints}: the checkpoint of step {self.step} is not this run's, or of another "
                f"version ({type(error).__name__}: {' '.join(str(error).split())[:200]}); rerun=true begins anew"
            ) from error

    def _checkpoint(self) -> None:
        # Written beside the training that goes on; the history up to this step is on the disk before it.
        state = self.state()
        if self.group.first:
            self.checkpoints.save(self.step, state, first=self.history.sync)

    # -- the loop -----------------------------------------------------------------------------------------------

    def result(self) -> Result:
        """Train to the end, measure every set of weights, and say what was found."""
        result = None
        self.begin()
        try:
            diverged = self.train(self.config.steps)
            if diverged:
                rows = [
                    Row(
                        name,
                        profile,
                        dict.fromkeys(self.task.metrics),
                        dict.fromkeys(self.task.metrics, diverged),
                    )
                    for name, profile in self._profiles().items()
                ]
            else:
                rows = self._measure(artifacts=True)
                self._record(rows)
                main = next(iter(self.task.metrics))
                if why := rows[0].reasons.get(main):  # finite losses, but weights that are worth no number
                    diverged = f"{main} of the {rows[0].average} weights {why}"
            self.checkpoints.join()  # a result counts on the state that it was measured from
            status: Status = "diverged" if diverged else "finished"
            found = self._result(status, diverged, rows) if self.group.first else None
            result = self.group.from_first(found)
            assert result is not None
            return result
        finally:
            try:
                self.checkpoints.join()  # who is told "stopped at step n" finds that step on the disk
            finally:
                self.tracker.finish(result)
                self.progress.close()
                self.history.close()

    def begin(self) -> None:
        """Open what is written along the run."""
        first = self.group.first
        self.history = History(self.directory.history, self.step) if first else NoHistory()
        self.history.measured = self.group.from_first(self.history.measured)
        self.tracker = tracker(self.config, self.directory, self.progress.say) if first else NoTracker()
        if 0 < self.step < self.config.steps:
            self.progress.say(f"{self.directory.path}: goes on from step {self.step}")
        self.progress.start(self.step)

    def train(self, until: int) -> str | None:
        """Steps until so many are done. Returns None, or in words what was not finite and when."""
        config = self.config
        self.model.train()
        draws = f"step of {self.group.rank}" if self.group.rank else "step"
        saved = time.monotonic()
        if self._measures_here() and self.step not in self.history.measured:
            self._measure_along()  # stopped after the checkpoint and before the measurement
        while self.step < until:
            began = time.perf_counter()
            # Dropout and the like draw from torch's own generator: derive its state from the step as well.
            seed_default(config.seed, draws, self.step, self.device)
            scalars = self.task.train_step(self.step)
            if self.device.type == "cuda" and self.averager.names:
                torch.cuda.synchronize(self.device)  # an update waits anyway; the time is the step's
            trained = time.perf_counter()
            lost = None
            try:
                if not any(optimizer.left_out for optimizer in self.optimizers):
                    self.averager.update()
            except NotFinite as error:  # the averages are as they were
                lost = str(error)
            # What one process knows alone: a signal, the first one's clock, what is not finite in a shard.
            late = self.group.first and time.monotonic() - saved > 60 * config.checkpoint.minutes
            stop, late, any_lost = self.group.agree(bool(self.stop), late, lost is not None)
            if any_lost:
                return next(filter(None, self.group.gathered(lost)))
            self.seconds["train_s"] += trained - began
            self.seconds["averaging_s"] += time.perf_counter() - trained
            self.step += 1
            for name, value in scalars.items():
                self.sums[name] = self.sums.get(name, 0.0) + (
                    value.detach() if isinstance(value, Tensor) else value
                )
            self.summed += 1

            last = self.step == config.steps
            measure = self._measures_here()
            due = config.checkpoint.every and self.step % config.checkpoint.every == 0
            log = last or self.step % config.log_every == 0
            if config.snapshots.every and (last or self.step % config.snapshots.every == 0):
                snapshots.save(self.directory.snapshots, self.averager, self.step, self.group)
            if log or measure or due or late or stop:
                # Looking at the losses waits for the device; a state that has lost its numbers is never saved.
                means = self.group.means(
                    {name: float(value) / self.summed for name, value in self.sums.items()}
                )
                bad = next((name for name, value in means.items() if not math.isfinite(value)), None)
                if bad:
                    return f"{bad} was not finite within the {self.summed} steps up to step {self.step}"
                if log:
                    self._log(means)
                if last or measure or due or late or stop:
                    self._checkpoint()
                    saved = time.monotonic()
            if measure:
                self._measure_along()
            if stop:
                raise self._interrupted()
        return None

    def _log(self, means: dict[str, float]) -> None:
        means["lr"] = self.config.optimizer.lr * factor(
            self.config.schedule, self.step - 1, self.config.steps
        )
        wall = self.seconds["train_s"] + self.seconds["averaging_s"]
        self.history.add(step=self.step, wall=round(wall, 3), **means)
        self.tracker.log(self.step, means)
        self.progress.update(self.step, means)
        self.sums, self.summed = {}, 0

    def _interrupted(self) -> Interrupted:
        return Interrupted(
            f"{self.directory.path}: stopped at step {self.step} of {self.config.steps}; "
            "the same command goes on from there"
        )

    # -- measuring ----------------------------------------------------------------------------------------------

    def _profiles(self) -> dict[str, dict[str, Any]]:
        """Every set of weights of the run by name, with what its profile amounts to over this many steps."""
        found: dict[str, dict[str, Any]] = {RAW: {}}
        for name, profile in self.averager.profiles.items():
            try:
                about = profile.describe(self.config.steps)
            except ValueError:  # what it weighs depends on the gradients, or is a mixture of others
                about = {}
            found[name] = profile.to_dict() | {"describe": about}
        return found

    def _measures_here(self) -> bool:
        """Is there a measurement along the way after this step? The one at the end is a matter of its own."""
        every = self.config.evaluate.every
        return bool(every and self.step and self.step % every == 0 and self.step < self.config.steps)

    def _measure_along(self) -> None:
        self._record(self._measure())

    def _record(self, rows: list[Row]) -> None:
        if self.step not in self.history.measured:
            self.history.measured.add(self.step)
            self.history.add(step=self.step, eval={row.average: dict(row.metrics) for row in rows})
            self.tracker.measure(self.step, rows)

    def _measure(self, artifacts: bool = False) -> list[Row]:
        """Every set of weights, evaluated one after the other on the same draws.

        Several processes deal them out; where the weights are in shards each process takes part in all of them,
        and where each has batch-norm statistics of its own the first one's are what is measured.
        """
        group, profiles = self.group, self._profiles()
        # Kept of a measurement that was stopped, and of this very state: no step was made since.
        kept = self.directory.kept_rows(self.step) if group.first and self.step == self.resumed else {}
        kept = group.from_first({name: row for name, row in kept.items() if name in profiles})
        lacking = [name for name in profiles if name not in kept]
        dealt = not group.sharded
        mine = lacking[group.rank :: group.world] if dealt else lacking
        if not group.alike(self.model):
            mine = lacking if group.first else []
        # Of several processes the first says so with its own words, the others at once.
        stopped = self._interrupted if group.first else KeyboardInterrupt
        rows: dict[str, Row] = {}
        began = time.perf_counter()
        for name in mine:
            self.progress.phase(f"step {self.step}/{self.config.steps}  measuring {name}")
            here = time.perf_counter()
            # The checkpoint of this step is on its way: nothing here has to be finished before the process ends.
            with self.stop.at_once(stopped), self.in_place(name):
                rows[name] = measured(name, profiles[name], self.task.evaluate())
                if artifacts and (dealt or group.first):
                    folder = self.directory.artifacts / name
                    folder.mkdir(parents=True, exist_ok=True)
                    self.task.save_artifacts(folder)
                    if self.config.log_weights and self.config.log != "none":
                        folder = self.directory.exported / name
                        folder.mkdir(parents=True, exist_ok=True)
                        self.task.export(folder)
            if time.perf_counter() - here > LONG and (dealt or group.first):
                self.directory.keep_row(self.step, rows[name])
        for found in reversed(group.gathered(rows)):  # of what several have measured, the first one's
            rows |= found
        rows |= kept
        self.seconds["evaluate_s"] += time.perf_counter() - began
        if group.first:
            self.directory.forget_rows()
        return [rows[name] for name in profiles]

    @contextmanager
    def in_place(self, name: str) -> Iterator[None]:
        """The weights of one average in the model, its batch-norm statistics seen to, in eval mode."""
        with self.averager.applied(name) if name != RAW else nullcontext(), self._ready(name != RAW):
            yield

    @contextmanager
    def holding(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Weights from elsewhere in the model, ready to be measured; the model's own come back afterwards."""
        own = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(weights)
        try:
            with self._ready(averaged=True):
                yield
        finally:
            self.model.load_state_dict(own)

    @contextmanager
    def _ready(self, averaged: bool) -> Iterator[None]:
        """Eval mode without gradients, the draws of an evaluation, batch-norm statistics recomputed if averaged."""
        with torch.no_grad():
            seed_default(self.config.seed, "evaluate", 0, self.device)
            if averaged and self.recalibrates:
                with self.group.apart(self.model):
                    recalibrate(self.model, self.task.calibration() or ())
            self.model.eval()
            try:
                yield
            finally:
                self.model.train()

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
            metrics={name: str(direction) for name, direction in task.metrics.items()},
            measured_with=dict(task.measured_with),
            references=dict(task.references()),
            timing={name: round(value, 3) for name, value in self.seconds.items()},
            environment=environment.describe(config, self.device, self.group.world),
        )
