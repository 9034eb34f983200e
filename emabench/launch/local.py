"""Several runs on this machine: one after the other in this process, or `jobs` at a time in processes of their own.

Finished runs are skipped, so the same command resumes an interrupted batch. A run that fails is reported and does
not stop the others.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from emabench.config import Config
from emabench.errors import DONE, INTERRUPTED, MISTAKE, Interrupted, RunFailed, UserError
from emabench.launch.plan import check, check_device, existing_run, has_gpu_driver
from emabench.runs import history
from emabench.runs.directory import RunDirectory
from emabench.runs.files import open_regular
from emabench.training.interruption import StopRequest, stop_requests

if TYPE_CHECKING:
    from rich.progress import TaskID

STOPPED = "stopped; the same command resumes"
LOOK = 2.0  # seconds between two looks at how far runs are


def missing(configs: Sequence[Config]) -> list[Config]:
    """The runs that have no result yet, or one that says "failed"; each once."""
    todo = {}
    for config in configs:
        run = None if config.rerun else existing_run(config)
        if run is None or run.result.status == "failed":
            todo[config.directory()] = config
    return list(todo.values())


def run_missing(configs: Sequence[Config], jobs: int = 1, names: Mapping[Path, str] | None = None) -> None:
    """Run what is missing, `jobs` at a time. UserError before anything starts, Interrupted when asked to stop.

    A run resumes bit-identically only with the same `jobs`, which set how many threads it has.

    `names`: what to call the run of a directory on the terminal, where that says more than its task and run_id.
    """
    todo = missing(configs)
    console = Console(stderr=True)
    held = [config for config in todo if RunDirectory(config.directory()).held()]
    for config in held:
        console.print(f"{config.directory()} is being run by another process; skipped", soft_wrap=True)
    todo = [config for config in todo if config not in held]
    if not todo:
        return
    for config in todo:
        check_device(config)
    check(todo)
    done = len({c.directory() for c in configs}) - len(todo) - len(held)
    console.print(
        f"{len(todo)} run{'' if len(todo) == 1 else 's'} to do, {done} done before", highlight=False
    )
    with stop_requests() as stop:
        if jobs == 1:
            _one_by_one(todo, console, stop)
        else:
            _in_parallel(todo, jobs, RunProgress(console, len(todo), names or {}), stop)


def _one_by_one(todo: list[Config], console: Console, stop: StopRequest) -> None:
    from emabench.training.start import run

    began = time.monotonic()
    for number, config in enumerate(todo, 1):
        if stop:
            raise Interrupted(STOPPED)
        try:
            run(config)
        except (RunFailed, UserError) as error:
            console.print(f"emabench: {error}", highlight=False, markup=False, soft_wrap=True)
        left = (time.monotonic() - began) / number * (len(todo) - number) / 60
        console.print(
            f"{number} of {len(todo)} run{'' if len(todo) == 1 else 's'} done, about {left:.0f} min left",
            highlight=False,
        )


class RunProgress:
    """What a person sees of runs side by side: a bar for each on a terminal, a line at the end of each in a log."""

    def __init__(self, console: Console, total: int, names: Mapping[Path, str]) -> None:
        self.names, self.total, self.count, self.began = names, total, 0, time.monotonic()
        self.looked = -LOOK

        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self.bars = Progress(*columns, console=console, disable=not console.is_terminal)
        self.all = self.bars.add_task("runs", total=total)
        self.bar: dict[Path, TaskID] = {}

    def started(self, config: Config) -> None:
        path = config.directory()
        name = self.names.get(path, f"{config.task_name}/{config.run_id()}")
        self.bar[path] = self.bars.add_task(name, total=config.steps)

    def look(self, running: Iterable[Config]) -> None:
        """Read from the runs' histories how far they are, now and then."""
        if not self.bars.disable and time.monotonic() - self.looked > LOOK:
            self.looked = time.monotonic()
            for config in running:
                step, _ = history.progress(RunDirectory(config.directory()).history, config.steps)
                self.bars.update(self.bar[config.directory()], completed=step)

    def ended(self, config: Config, status: int, why: str = "") -> None:
        self.count += 1
        self.bars.update(self.all, completed=self.count)
        self.bars.remove_task(self.bar.pop(config.directory()))
        left = (time.monotonic() - self.began) / self.count * (self.total - self.count) / 60
        words = f"{self.count} of {self.total} run{'' if self.total == 1 else 's'} done, about {left:.0f} min left"
        if failed := status not in (DONE, INTERRUPTED):
            how = f"{signal.Signals(-status).name}, " if status < 0 else ""  # SIGKILL: out of memory, mostly
            why = why or last_log_line(config.directory())
            words += f" FAILED ({how}see {config.directory() / 'log.txt'})\n  {why}"
        if failed or self.bars.disable:
            self.bars.console.print(words, highlight=False, markup=False, soft_wrap=True)


def _in_parallel(todo: list[Config], jobs: int, watch: RunProgress, stop: StopRequest) -> None:
    """A pool of processes. Cores and GPUs are dealt out evenly; each process writes to its run's `log.txt`."""
    waiting = list(reversed(todo))
    running: dict[subprocess.Popen[bytes], tuple[Config, int]] = {}
    interrupted = False
    gpus, cores = _gpus(), _cores()
    each = max(config.devices for config in todo)
    dealt = [gpus[at : at + each] for at in range(0, len(gpus) - each + 1, each)] or [gpus]
    slots = list(range(jobs))
    try:
        with watch.bars:
            while waiting or running:
                if stop:
                    raise Interrupted(STOPPED)
                while waiting and slots:
                    config, slot = waiting.pop(), slots.pop()
                    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
                    if gpus and ":" not in config.device:
                        environment["CUDA_VISIBLE_DEVICES"] = ",".join(dealt[slot % len(dealt)])
                    watch.started(config)
                    try:
                        running[_start(config, environment)] = (config, slot)
                    except UserError as error:
                        slots.append(slot)
                        watch.ended(config, MISTAKE, str(error))
                for process in [p for p in running if p.poll() is not None]:
                    config, slot = running.pop(process)
                    slots.append(slot)
                    interrupted |= process.returncode == INTERRUPTED
                    watch.ended(config, process.returncode)
                if interrupted:
                    waiting.clear()
                watch.look(config for config, _ in running.values())
                time.sleep(0.2)
    except BaseException:
        for process in running:
            process.send_signal(signal.SIGTERM)  # each writes its checkpoint and ends
        for process in running:
            process.wait()
        raise
    if interrupted:
        raise Interrupted(STOPPED)


def last_log_line(path: Path) -> str:
    """The last line of a run's log."""
    try:
        with open_regular(path / "log.txt", 2**40) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return "".join(c if c.isprintable() else " " for c in lines[-1]) if lines else ""


def _start(config: Config, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    directory = RunDirectory(config.directory())
    directory.prepare(config)
    with (directory.path / "log.txt").open("ab") as log:
        worker = ["-P", "-m", "emabench.launch.worker"]  # nothing is imported from the working directory
        command = [sys.executable, *worker, str(directory.path), str(os.getpid())]
        # A session of its own: a signal reaches this process alone, which asks its workers to stop.
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def _gpus() -> list[str]:
    """The CUDA devices that may be used, as CUDA_VISIBLE_DEVICES names them."""
    if not has_gpu_driver():
        return []

    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu]
    return [str(index) for index in range(torch.cuda.device_count())]


def default_jobs(configs: Sequence[Config]) -> int:
    """One run a GPU (or so many as it asks for); without one a run a core: small steps are too small to share."""
    gpus = _gpus() if configs[0].device != "cpu" else []
    return max(1, (len(gpus) or _cores()) // max(config.devices for config in configs))


def _cores() -> int:
    """The cores that this process may use."""
    given = os.environ.get("SLURM_CPUS_PER_TASK")
    if given:
        return int(given)
    affinity = getattr(os, "sched_getaffinity", None)  # not everywhere
    return len(affinity(0)) if affinity else os.cpu_count() or 1
