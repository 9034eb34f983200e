"""Several runs on this machine: one after the other in this process, or `jobs` at a time in processes of their own.

Whatever is finished already is passed over, so an interrupted batch goes on with the same command. A run that
fails is said and does not take the others down.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from rich.console import Console

from emabench.config import Config
from emabench.errors import INTERRUPTED, Interrupted, RunFailed
from emabench.launch.plan import check
from emabench.runs.directory import RunDirectory
from emabench.training.interruption import StopRequest, stop_requests


def missing(configs: Sequence[Config]) -> list[Config]:
    """The runs that have no result yet, or one that says "failed"; each once."""
    todo = {}
    for config in configs:
        result = RunDirectory(config.directory()).result()
        if config.rerun or result is None or result.status == "failed":
            todo[config.directory()] = config
    return list(todo.values())


def run_missing(configs: Sequence[Config], jobs: int = 1) -> None:
    """Run what is missing. Raises UserError before anything starts, Interrupted when asked to stop."""
    todo = missing(configs)
    console = Console(stderr=True)
    if not todo:
        return
    check(todo)
    done = len({c.directory() for c in configs}) - len(todo)
    console.print(f"{len(todo)} runs to do, {done} done before", highlight=False)
    if (
        jobs == 1 or len(configs) == 1
    ):  # not by what is left: a run goes on with as many threads as it began with
        _in_turn(todo, console)
    else:
        with stop_requests() as stop:
            _side_by_side(todo, jobs, console, stop)


def _in_turn(todo: list[Config], console: Console) -> None:
    from emabench.training.run import run

    began = time.monotonic()
    for number, config in enumerate(todo, 1):
        try:
            run(config)
        except RunFailed as error:
            console.print(f"emabench: {error}", highlight=False, markup=False, soft_wrap=True)
        left = (time.monotonic() - began) / number * (len(todo) - number) / 60
        console.print(f"{number} of {len(todo)} runs done, about {left:.0f} min left", highlight=False)


def _side_by_side(todo: list[Config], jobs: int, console: Console, stop: StopRequest) -> None:
    """A pool of processes. Cores and GPUs are dealt out evenly; each process writes to its run's `log.txt`."""
    waiting = list(reversed(todo))
    running: dict[subprocess.Popen[bytes], tuple[Config, int]] = {}
    began, count, interrupted = time.monotonic(), 0, False
    gpus = _gpus()
    cores = int(os.environ.get("SLURM_CPUS_PER_TASK") or os.cpu_count() or 1)
    slots = list(range(jobs))
    try:
        while waiting or running:
            if stop:
                raise Interrupted("stopped; the same command goes on from there")
            while waiting and slots:
                config, slot = waiting.pop(), slots.pop()
                environment = os.environ | {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
                if gpus:
                    environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
                running[_start(config, environment)] = (config, slot)
            for process in [p for p in running if p.poll() is not None]:
                config, slot = running.pop(process)
                slots.append(slot)
                count += 1
                interrupted |= process.returncode == INTERRUPTED
                left = (time.monotonic() - began) / count * (len(todo) - count) / 60
                failed = f" FAILED, see {config.directory() / 'log.txt'}" if process.returncode else ""
                console.print(
                    f"{count} of {len(todo)} runs done, about {left:.0f} min left{failed}",
                    highlight=False,
                    soft_wrap=True,
                )
            if interrupted:
                waiting.clear()
            time.sleep(0.2)
    except BaseException:
        for process in running:
            process.send_signal(signal.SIGTERM)  # each writes its checkpoint and ends
        for process in running:
            process.wait()
        raise
    if interrupted:
        raise Interrupted("stopped; the same command goes on from there")


def _start(config: Config, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    directory = RunDirectory(config.directory())
    directory.prepare(config)
    with (directory.path / "log.txt").open("ab") as log:
        command = [sys.executable, "-m", "emabench.launch.worker", str(directory.path)]
        # A session of its own: a signal reaches this process alone, which asks its workers to stop.
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def _gpus() -> list[str]:
    """The CUDA devices that may be used, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu]
    return [str(index) for index in range(torch.cuda.device_count())]


def default_jobs(configs: Sequence[Config]) -> int:
    """One process a GPU; without one a process a core for the small scales, whose steps are too small to share."""
    gpus = _gpus() if configs[0].device != "cpu" else []
    return max(1, len(gpus) or (os.cpu_count() or 1))
