"""Several processes train the run that one would: the same losses, averages and metrics, and they end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from emabench.compose import configuration
from emabench.config import Config
from emabench.errors import INTERRUPTED, RunFailed, UserError
from emabench.runs.directory import RunDirectory
from emabench.runs.history import lines
from emabench.runs.result import Result
from emabench.tasks import classification
from emabench.training import checkpoint
from emabench.training.distributed import RankInfo
from emabench.training.start import run, run_rank

pytestmark = pytest.mark.timeout(1500)

RUNS = {  # without dropout, whose masks are each process's own, and (cnn) batch statistics, which are as well
    "ddpm": ["task=ddpm", "task.dropout=0", "snapshots.every=6"],
    "bert": ["task=bert", "task.dropout=0"],
    "lstm": ["task=lstm"],
    "moco": ["task=moco"],
    "moco's bank": ["task=moco", "task.method=bank"],
    "shards": ["task=ddpm", "task.dropout=0", "seed=1", "snapshots.every=6", "parallel=fsdp"],
}
BROKEN = ["task=classification"]
STATISTICS = ["task=classification", "ema.decay=0", "seed=2"]  # of batch norm, each process's own on a CPU


def smoke(folder: Path, *words: str) -> Config:
    return configuration(["scale=smoke", f"results_dir={folder}", "device=cpu", "log_every=1", *words])


def member(rank: int, folder: Path, port: int) -> None:
    """One of two processes: all the runs, and one in which the second of them cannot go on."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.distributed_c10d._tensor_to_object = lambda *_: pytest.fail("something received is unpickled")

    def place(name: str) -> RankInfo:
        return RankInfo(rank, 2, rank, dist.PrefixStore(name, store))

    for name, words in RUNS.items():
        run_rank(smoke(folder, *words), place(name))
    for buffers in ("copy", "average"):
        run_rank(smoke(folder, *STATISTICS, f"ema.buffers={buffers}"), place(buffers))
    if rank == 1:
        classification.Task.train_step = lambda self, batch, step: 1 / 0  # type: ignore[assignment, method-assign]
    with pytest.raises(RunFailed, match="ZeroDivisionError"):
        run_rank(smoke(folder, *BROKEN), place("broken"))
    if rank == 1:
        os._exit(0)  # as `devices=N` does


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have left their runs."""
    folder = tmp_path_factory.mktemp("two")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    mp.spawn(member, (folder, store.port), nprocs=2)
    return folder


def losses(config: Config) -> list[float]:
    return [line["loss"] for line in lines(RunDirectory(config.directory()).history) if "loss" in line]


def assert_close(several: Result, one: Result, tolerance: float) -> None:
    """Every metric of every average, up to what another order of additions makes of them."""
    assert several.status == one.status == "finished"
    assert [row.average for row in several.rows] == [row.average for row in one.rows]
    for mine, theirs in zip(several.rows, one.rows, strict=True):
        for name, value in theirs.metrics.items():
            assert mine.metrics[name] == pytest.approx(value, rel=tolerance, abs=tolerance), (mine, name)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_the_run_of_one(name: str, by_two: Path, tmp_path: Path) -> None:
    one, two = smoke(tmp_path, *RUNS[name]), smoke(by_two, *RUNS[name])
    assert one.run_id() == two.run_id()
    expected = run(one)
    found = RunDirectory(two.directory()).result()
    assert found
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert len(losses(two)) == one.steps >= 12
    assert_close(found, expected, 1e-2)
    assert found.environment["processes"] == 2
    names = [
        sorted(
            str(p.relative_to(c.directory()))
            for p in c.directory().rglob("*")
            if p.parent.name != "checkpoints"
        )
        for c in (one, two)
    ]
    assert names[0] == names[1]
    states = [latest_state(c) for c in (one, two)]
    assert_near(*states)


@pytest.mark.parametrize("buffers", ["copy", "average"])
def test_averages_are_measured_with_the_statistics_of_one_process(buffers: str, by_two: Path) -> None:
    """An average of decay 0 is the raw weights, and has to measure as they do."""
    found = RunDirectory(smoke(by_two, *STATISTICS, f"ema.buffers={buffers}").directory()).result()
    assert found
    raw, average = found.row("raw"), found.row("ema_0")
    assert raw and average
    assert raw.metrics == average.metrics


def latest_state(config: Config) -> dict[str, Any]:
    found = checkpoint.load_latest(RunDirectory(config.directory()).checkpoints, pytest.fail)
    assert found
    return {name: found[1][name] for name in ("task", "averager", "sums", "summed")}


def assert_near(a: Any, b: Any, at: str = "") -> None:
    """The same form, with the same tensors up to floating point."""
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(b, a, rtol=1e-2, atol=1e-3, msg=lambda text: f"{at}: {text}")
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), at
        for key in a:
            assert_near(a[key], b[key], f"{at}.{key}")
    elif isinstance(a, list | tuple):
        assert type(a) is type(b), at
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_near(x, y, f"{at}[{i}]")
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-3), at
    else:
        assert a == b, at


def test_what_ends_one_ends_all_with_its_reason(by_two: Path) -> None:
    directory = RunDirectory(smoke(by_two, *BROKEN).directory())
    assert "1 / 0" in directory.error.read_text()
    assert (there := directory.result())
    assert there.status == "failed"
    assert "ZeroDivisionError" in str(there.reason)


def test_a_stopped_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    """SIGTERM at the second of two processes that `devices=2` has started, in shards; ended by one process."""
    words = ["task=ddpm", "task.dropout=0", "steps=60"]
    parted = smoke(tmp_path, *words, "devices=2", "parallel=fsdp", "checkpoint.every=1")
    command = [sys.executable, "-m", "emabench", "scale=smoke", "device=cpu", "log_every=1", *words]
    command += [f"results_dir={tmp_path}", "devices=2", "parallel=fsdp", "checkpoint.every=1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    wait_until(lambda: latest(parted) > 2, process)
    assert listening(process.pid) == {"0100007F"}  # 127.0.0.1: nobody in the network can connect
    os.kill(second_of(process.pid), signal.SIGTERM)
    _, message = process.communicate(timeout=400)
    assert process.returncode == 75, message
    assert "stopped at step" in message
    assert "Traceback" not in message
    assert 2 < latest(parted) < 60
    one = smoke(tmp_path / "one", *words)
    found = run(parted.model_copy(update={"devices": 1, "parallel": "ddp"}))
    assert found.status == "finished"
    assert losses(parted) == pytest.approx(losses(one) if run(one) else [], rel=2e-2)


def test_a_process_that_is_killed_is_named_in_the_result(tmp_path: Path) -> None:
    """The first of two, which would write the files; the other one only loses its connection."""
    words = ["task=ddpm", "task.dropout=0", "steps=2000", "devices=2", "checkpoint.every=1"]
    config = smoke(tmp_path, *words)
    command = [sys.executable, "-m", "emabench", "scale=smoke", "device=cpu", "log_every=1", *words]
    process = subprocess.Popen(
        [*command, f"results_dir={tmp_path}"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    wait_until(lambda: latest(config) > 2, process)
    os.kill(second_of(process.pid, min), signal.SIGKILL)
    _, message = process.communicate(timeout=400)
    assert process.returncode == 1, message
    assert "process 0 of 2 was ended by SIGKILL; the same command resumes" in message.replace("\n", " ")
    result = RunDirectory(config.directory()).result()
    assert result and result.status == "failed" and "was ended by SIGKILL" in str(result.reason)


def latest(config: Config) -> int:
    return max((int(p.name.split("-")[1]) for p in config.directory().glob("checkpoints/step-*")), default=0)


def wait_until(condition, process) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + 800  # three processes import torch, on a machine that may have other work
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.02)


def listening(parent: int) -> set[str]:
    """The addresses on which a process and its children listen, as Linux writes them."""
    pids = [str(parent), *Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    files = {
        str(path.readlink())
        for pid in pids
        for path in Path(f"/proc/{pid}/fd").iterdir()
        if path.is_symlink()
    }
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{parent}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in files:
                addresses.add(local.partition(":")[0])
    return addresses


def second_of(parent: int, which: Callable[[Iterable[int]], int] = max) -> int:
    """The last process that a run has started: not the first of those that train (`min` for that one)."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return which(
        int(child) for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()
    )


def test_a_signal_before_the_processes_listen_is_an_interruption(tmp_path: Path) -> None:
    """Torch takes seconds to import; a job that is preempted then has to be requeued too."""
    words = ["task=ddpm", "scale=smoke", "device=cpu", "devices=2", f"results_dir={tmp_path}"]
    command = [sys.executable, "-m", "emabench", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(lambda: len(children.read_text().split()) > 1, process)
    os.killpg(process.pid, signal.SIGTERM)
    _, message = process.communicate(timeout=400)
    assert process.returncode == INTERRUPTED, message
    assert run(smoke(tmp_path, "task=ddpm")).status == "finished"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["batch_size=15", "devices=2"], "batch_size=15: cannot be divided among devices=2"),
        (["devices=2", "parallel=fsdp", "precision=fp16"], "precision=fp16"),
    ],
)
def test_what_cannot_be_shared_is_said_before_anything_starts(
    words: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run(smoke(tmp_path, "task=ddpm", *words))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", ["td3", "quadratic"])
def test_a_task_that_trains_in_one_process_says_so(task: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"devices=2: task {task} trains in one process"):
        smoke(tmp_path, f"task={task}").check_supported(2)
