"""`devices=N`: spawn N processes of this machine for one run, pass a signal on to them and wait for them.

`torchrun -m emabench …` does the same over several machines; its processes call `start.run` themselves.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from emabench.config import Config, checked
from emabench.errors import Interrupted, RunFailed, UserError
from emabench.runs.directory import RunDirectory
from emabench.runs.result import Result
from emabench.training import distributed
from emabench.training.distributed import RankInfo
from emabench.training.failures import RESUME, write_failure
from emabench.training.interruption import stop_if_parent_dies, stop_requests

PATIENCE = 60.0  # seconds that the others have to end after one has died

HOST = "127.0.0.1"
LOOPBACK = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")  # lo0 on macOS

RunRank = Callable[[Config, RankInfo], Result]  # `start.run_rank`


def run(config: Config, run_rank: RunRank) -> Result:
    """The result of this run, trained by `config.devices` processes that call `run_rank`. Raises as `start.run` does."""
    directory = RunDirectory(config.directory())
    existing = directory.result()
    if existing and existing.status != "failed" and not config.rerun:
        return existing
    config.check_supported()
    store = loopback_store()
    died = None
    with stop_requests() as stop:
        processes = mp.start_processes(
            _process,
            (config.model_dump(), run_rank, store.port),
            config.devices,
            join=False,
            start_method="spawn",
        )
        signalled = False
        try:
            while not processes.join(timeout=0.5, grace_period=PATIENCE):
                if stop and not signalled:
                    # SIGTERM, which may come twice: after Ctrl-C the terminal has signalled them as well.
                    signalled = True
                    for pid in processes.pids():
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGTERM)
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            died = error
        finally:
            for process in processes.processes:
                if process.is_alive():
                    process.kill()
    why = distributed.end_reason(store)
    if stop and isinstance(died, mp.ProcessExitedException) and (why is None or died.signal_name):
        # One was hit before it listened for signals, while it imported torch for example.
        raise Interrupted(f"{directory.path}: stopped; {RESUME}")
    result = directory.result()
    finished = result is not None and result.status != "failed"
    if isinstance(died, mp.ProcessExitedException) and died.signal_name and not finished:
        # A killed process reports nothing. What the others report is that they lost their connection to it.
        killed = RunFailed(
            f"{directory.path}: process {died.error_index} of {config.devices} was ended by {died.signal_name}; "
            f"{RESUME}"
        )
        write_failure(config, directory, killed, str(killed))
        raise killed from died
    if why is not None:
        raise why.error()
    if died is not None:
        raise RunFailed(f"{directory.path}: {died}") from died
    if result is None:
        raise Interrupted(f"{directory.path}: stopped; {RESUME}")
    return result


def loopback_store() -> dist.TCPStore:
    """A store that listens on the loopback interface only: torch's own would answer everybody in the network.

    A user of the same machine could still connect to it, and end the run; nothing that is received is unpickled.
    """
    listener = socket.create_server((HOST, 0))
    port = listener.getsockname()[1]
    return dist.TCPStore(
        HOST, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )


def _process(rank: int, data: dict[str, Any], run_rank: RunRank, port: int) -> None:
    """One of the processes. It reports why it ends through the store, not through its exit status."""
    for library in ("GLOO", "NCCL"):  # they, too, would listen on every interface
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", LOOPBACK)
    stop_if_parent_dies(os.getppid())
    config = checked(Config, data)
    torch.set_num_threads(max(1, torch.get_num_threads() // config.devices))  # the machine's, shared out
    store = dist.TCPStore(HOST, port, is_master=False)
    try:
        run_rank(config, RankInfo(rank, config.devices, rank, store))
    except (UserError, RunFailed, Interrupted):
        if rank:
            os._exit(0)  # no interpreter shutdown: whoever waits for this process notices immediately
