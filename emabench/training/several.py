"""`devices=N`: one run by N processes of this machine, started, told to stop and waited for here.

`torchrun -m emabench …` does the same over several machines; its processes come to `run` by themselves.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from emabench import tasks
from emabench.config import Config, checked
from emabench.errors import Interrupted, RunFailed, UserError
from emabench.runs.directory import RunDirectory
from emabench.runs.result import Result
from emabench.training import distributed
from emabench.training.interruption import stop_requests, stop_without

PATIENCE = 60.0  # seconds that the others have to end after one has died


def check(config: Config, world: int) -> None:
    """Raises UserError where so many processes cannot train this run together."""
    kind = tasks.load(config.task_name).Task
    if config.parallel not in kind.parallel:
        if not kind.parallel:
            mend = f"task {config.task_name} trains in one process; use devices=1"
            raise UserError(f"devices={world}: {mend}")
        ways = ", ".join(sorted(kind.parallel))
        raise UserError(f"parallel={config.parallel}: task {config.task_name} knows {ways} alone")
    if config.parallel == "fsdp" and config.precision == "fp16":
        raise UserError("precision=fp16: its loss scale does not know of shards; use bf16 with parallel=fsdp")
    if config.batch_size % world:
        near = max(1, round(config.batch_size / world)) * world
        raise UserError(
            f"batch_size={config.batch_size}: cannot be divided among devices={world}; "
            f"use batch_size={near}, or other devices"
        )


def run(config: Config) -> Result:
    """The result of this run, trained by `config.devices` processes. Raises as `training.run.run` does."""
    directory = RunDirectory(config.directory())
    there = directory.result()
    if there and there.status != "failed" and not config.rerun:
        return there
    check(config, config.devices)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    died = None
    with stop_requests() as stop:
        processes = mp.start_processes(
            _member, (config.model_dump(), store.port), config.devices, join=False, start_method="spawn"
        )
        told = False
        try:
            while not processes.join(timeout=0.5, grace_period=PATIENCE):
                if stop and not told:
                    # SIGTERM, which may come twice: of Ctrl-C they hear from the terminal as well.
                    told = True
                    for number in processes.pids():
                        with suppress(ProcessLookupError):
                            os.kill(number, signal.SIGTERM)
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            died = error
        finally:
            for process in processes.processes:
                if process.is_alive():
                    process.kill()
    why = distributed.reason(store)
    if stop and isinstance(died, mp.ProcessExitedException) and (why is None or died.signal_name):
        # One was hit before it listened, importing torch say.
        raise Interrupted(f"{directory.path}: stopped; the same command goes on from the last checkpoint")
    result = directory.result()
    failed = why is None or (result is not None and result.status == "failed")
    if isinstance(died, mp.ProcessExitedException) and died.signal_name and failed:
        # Who was killed says nothing: the others only noticed that it was gone.
        raise RunFailed(
            f"{directory.path}: process {died.error_index} of {config.devices} was ended by {died.signal_name}; "
            "the same command goes on from the last checkpoint"
        ) from died
    if why is not None:
        raise why.error()
    if died is not None:
        raise RunFailed(f"{directory.path}: {died}") from died
    if result is None:
        raise Interrupted(f"{directory.path}: stopped; the same command goes on from the last checkpoint")
    return result


def _member(rank: int, given: dict[str, Any], port: int) -> None:
    """One of the processes. Why it ends it says at the store, not by how it exits."""
    from emabench.training.run import run_at

    stop_without(os.getppid())
    config = checked(Config, given)
    torch.set_num_threads(max(1, torch.get_num_threads() // config.devices))  # the machine's, dealt out
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    try:
        run_at(config, distributed.Place(rank, config.devices, rank, store))
    except (UserError, RunFailed, Interrupted):
        if rank:
            os._exit(0)  # without ceremony: who waits for this one notices at once
