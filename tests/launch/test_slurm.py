"""On a cluster: jobs hold what was settled at submission, survive whatever stops them, and give what a local run gives.

The tests marked so need a real SLURM, the one of one node that `slurm/local-cluster` starts. Its twin without one
is submitit's local executor, which pickles, signals and requeues the same job objects.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import submitit

from emabench import compose
from emabench.cli import main
from emabench.config import Config
from emabench.errors import DONE, MISTAKE, UserError
from emabench.launch import slurm
from emabench.launch.local import run_missing
from emabench.launch.status import run_state
from emabench.paths import conf_dir
from emabench.runs import history
from emabench.runs.directory import Held, RunDirectory, run_directories
from tests.test_config import config

ROOT = Path(__file__).parents[2]
LONG = [
    "steps=3000",
    "log_every=10",
    "device=cpu",
    "ema.decay=[0.9,0.99,0.999]",
]  # a second or two: time to stop it


def long_runs(results_dir: Path) -> list[Config]:
    return [config(f"results_dir={results_dir}", f"seed={seed}", *LONG) for seed in (0, 1)]


def rows(results_dir: Path) -> dict[str, Any]:
    """What was measured, by run."""
    found = {path.name: RunDirectory(path).result() for path in run_directories(results_dir)}
    return {name: result.rows if result else None for name, result in found.items()}


def steps_done(directory: Path) -> int:
    file = directory / "history.jsonl"
    return max((line["step"] for line in history.lines(file)), default=0) if file.exists() else 0


def wait_until(true: Callable[[], Any], what: str, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def local_rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the runs of this module give when nothing stops them."""
    results_dir = tmp_path_factory.mktemp("local")
    run_missing(long_runs(results_dir))
    return rows(results_dir)


# -- without a cluster --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_interrupted_job_is_requeued_and_gives_what_a_local_run_gives(
    tmp_path: Path, local_rows: dict[str, Any]
) -> None:
    """Two runs side by side in one job, which is signalled while they train."""
    runs = long_runs(tmp_path / "job")
    executor = submitit.LocalExecutor(tmp_path / "log")
    executor.update_parameters(timeout_min=10, stderr_to_stdout=True)
    job = executor.submit(slurm.Job(runs, jobs=2))
    wait_until(lambda: any(steps_done(run.directory()) for run in runs), "one trains")
    os.kill(int(job.job_id), signal.SIGTERM)  # submitit's controller hands it on to the job
    job.result()
    assert "Requeued job" in job.paths.stdout.read_text()
    assert any("resumes from step" in (run.directory() / "log.txt").read_text() for run in runs)
    assert rows(tmp_path / "job") == local_rows


@pytest.mark.parametrize(("state", "requeued"), [("RUNNING", True), ("COMPLETING", False)])
def test_what_slurm_ends_by_itself_is_not_requeued(
    state: str, requeued: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that was cancelled stays cancelled: it is only requeued while SLURM still has it running."""
    squeue = tmp_path / "squeue"
    squeue.write_text(f'#!/bin/sh\ncase "$*" in *--jobs=7_1*) echo {state};; esac\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for key, value in {
        "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_JOB_ID": "8",
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "1",
    }.items():
        monkeypatch.setenv(key, value)
    caught: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: caught.append(number))
    try:
        with pytest.raises(SystemExit):
            slurm.hand_back()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert bool(caught) == requeued


def test_every_profile_starts_from_the_default(tmp_path: Path) -> None:
    assert [slurm.profile(path.stem, {}) for path in (conf_dir() / "cluster").glob("*.yaml")]
    mine = tmp_path / "mine.yaml"
    mine.write_text("partition: a100\nsetup: [module load cuda]\n")
    asked = slurm.profile(str(mine), {"hours": 4, "sbatch": {"nice": 100}, "account": 12345})
    assert (asked.partition, asked.hours, asked.gpus) == ("a100", 4, slurm.profile("default", {}).gpus)
    assert asked.account == "12345"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("locl", {}, "did you mean 'local'"),
        ("local", {"gpu": 1}, "did you mean 'gpus'"),
        ("local", {"cpus": 0}, "cluster.cpus=0"),
        ("local", {"hours": 0.01}, "notice=60: is as long as the whole job"),
        ("local", {"hours": "24:00"}, "cluster.hours=24:00"),
        ("no/such.yaml", {}, "no/such.yaml"),
        ("local", {"sbatch": {"array": "0-3"}}, "array: emabench sets that itself"),
    ],
)
def test_a_mistake_in_a_profile_is_named(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        slurm.profile(name, changes)


def test_without_slurm_it_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["table", "variance_law", "scale=smoke", f"results_dir={tmp_path}"]
    assert main([*words, "launcher=slurm"]) == MISTAKE
    assert "sbatch is not on the PATH" in capsys.readouterr().err
    assert main([*words, "launcher=slrm"]) == MISTAKE
    assert main([*words, "runs_per_job=2"]) == MISTAKE
    assert "runs_per_job=2: is for launcher=slurm" in capsys.readouterr().err
    assert not run_directories(tmp_path)


def stub(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_runs_are_noted_before_they_are_in_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever breaks a submission off after sbatch, the next one finds its jobs in the queue."""
    results = tmp_path / "results"
    runs = [config(f"results_dir={results}", f"seed={seed}") for seed in range(3)]
    noted = " && ".join(f"test -s '{run.directory() / 'job.json'}'" for run in runs)
    stub(tmp_path, "sbatch", f"{noted} && kill -INT $PPID; sleep 1; echo Submitted batch job 7")
    stub(tmp_path, "srun", "exit 0")
    stub(tmp_path, "squeue", f"cat {tmp_path}/queue 2>/dev/null; exit 0")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    profile = slurm.profile("local", {})
    with pytest.raises(KeyboardInterrupt):
        slurm.submit("sweep", runs, profile, 2)
    name = next((results / ".slurm").glob("sweep-*")).name
    (tmp_path / "queue").write_text(
        f"{name}|7_0|RUNNING|None\n{name}|7_1|PENDING|Priority\nother|8|RUNNING|\n"
    )
    assert slurm.submit("sweep", runs, profile, 2) == []
    assert {slurm.queue()[job].job for run in runs if (job := slurm.submitted(run))} == {"7_0", "7_1"}
    states = [run_state(run, slurm.queue()) for run in runs]
    assert [(at.state, at.job) for at in states] == [
        ("running", "7_0"),
        ("running", "7_0"),
        ("pending", "7_1"),
    ]


def test_a_run_whose_cancelled_job_is_still_ending_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its job has left the queue, its process still holds the run; one that does not let go is named."""
    run = config(f"results_dir={tmp_path}/results")
    directory = RunDirectory(run.directory())
    stub(tmp_path, "sbatch", "echo Submitted batch job 7")
    for name in ("srun", "squeue"):
        stub(tmp_path, name, "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    profile = slurm.profile("local", {})
    assert len(slurm.submit("sweep", [run], profile, 1)) == 1
    with directory.locked():
        monkeypatch.setattr(slurm, "ENDING", 0.2)
        assert slurm.submit("sweep", [run], profile, 1) == []
        assert f"{directory.path}: is being run by process {os.getpid()} of " in capsys.readouterr().err
    monkeypatch.setattr(slurm, "ENDING", 60.0)
    held = directory.locked()
    held.__enter__()
    threading.Timer(0.5, held.__exit__, (None, None, None)).start()
    assert len(slurm.submit("sweep", [run], profile, 1)) == 1
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "answer",
    [
        "exit 1",
        "echo what?",
        "printf 'sbatch: unrecognized option\\nTry \"sbatch --help\" for more\\n' >&2; exit 1",
    ],
)
def test_whatever_sbatch_says_is_said_in_words(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(tmp_path, "sbatch", answer)
    stub(tmp_path, "srun", "exit 0")
    stub(tmp_path, "squeue", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    runs = [config(f"results_dir={tmp_path / 'results'}", f"seed={seed}") for seed in range(2)]
    with pytest.raises(UserError, match=r"sbatch refused the jobs: [^ ].*cluster\.KEY") as refused:
        slurm.submit("sweep", runs, slurm.profile("local", {}), 1)
    assert ("unrecognized option" in str(refused.value)) == ("unrecognized" in answer)
    assert not any(slurm.submitted(run) for run in runs)


def test_jobs_that_may_be_in_the_queue_stay_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when sbatch has taken them: what is in the queue then is not submitted again."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("sbatch", "srun", "squeue"):
        stub(tmp_path, name, "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(submitit.SlurmExecutor, "submit_array", full)
    run = config(f"results_dir={tmp_path / 'results'}")
    with pytest.raises(UserError, match="No space left"):
        slurm.submit("sweep", [run], slurm.profile("local", {}), 1)
    sent = slurm.submitted(run)
    assert sent
    stub(tmp_path, "squeue", f"echo '{sent.name}|7|PENDING|Priority'")
    assert slurm.submit("sweep", [run], slurm.profile("local", {}), 1) == []


def test_more_processes_than_a_job_has_gpus_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(tmp_path, "sbatch", "exit 1")
    stub(tmp_path, "squeue", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    run = config(f"results_dir={tmp_path / 'results'}", "task=ddpm", "devices=4", "device=auto")
    with pytest.raises(UserError, match=r"devices=4: .* cluster.gpus=4"):
        slurm.submit("sweep", [run], slurm.profile("default", {}), 1)


def test_what_the_cluster_refuses_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """rerun=true forgets what was found only once the jobs are in the queue."""
    run = config(f"results_dir={tmp_path / 'results'}", "device=cpu", "rerun=true")
    run_missing([run])
    directory = RunDirectory(run.directory())
    before = {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()}
    stub(tmp_path, "sbatch", "echo invalid partition >&2; exit 1")
    stub(tmp_path, "srun", "exit 0")
    stub(tmp_path, "squeue", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(UserError, match="refused"):
        slurm.submit("quadratic", [run], slurm.profile("local", {}), 1)
    assert {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()} == before
    with directory.locked(), pytest.raises(Held):
        slurm.submit("quadratic", [run], slurm.profile("local", {}), 1)
    assert directory.result()


# -- on a cluster -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A SLURM of one node for this module; yields its SLURM_CONF."""
    if not shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin"):
        pytest.skip("slurm-wlm is not installed: apt install slurm-wlm")
    state = tempfile.mkdtemp(prefix="slurm")  # a short path: sockets lie in it
    command, environment = str(ROOT / "slurm" / "local-cluster"), os.environ | {"EMABENCH_SLURM_DIR": state}
    try:
        subprocess.run([command, "start"], env=environment, check=True, timeout=120)
        yield f"{state}/slurm.conf"
    finally:
        subprocess.run([command, "stop"], env=environment, check=True, timeout=120)
        shutil.rmtree(state)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_table_on_a_cluster_that_stops_its_jobs(
    cluster: str,
    local_rows: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One job reaches its time limit, the other is requeued by hand, and the YAML is edited meanwhile."""
    monkeypatch.setenv("SLURM_CONF", cluster)
    monkeypatch.setenv("COLUMNS", "140")
    installed, there = tmp_path / "installed", tmp_path / "cluster"
    for folder in ("emabench", "conf"):
        shutil.copytree(ROOT / folder, installed / folder, ignore=shutil.ignore_patterns("__pycache__"))
    table = ["table", "variance_law", "scale=smoke", f"results_dir={there}", *LONG]
    subprocess.run(
        [sys.executable, "-m", "emabench", *table, "launcher=slurm", "cluster=local"],
        env=os.environ | {"PYTHONPATH": str(installed)},
        cwd=tmp_path,
        check=True,
    )
    for file in ("task/quadratic.yaml", "table/variance_law.yaml", "cluster/local.yaml", "config.yaml"):
        (installed / "conf" / file).write_text("edited: while the jobs are queued\n")

    runs = long_runs(there)
    jobs = [job for run in runs if (job := slurm.submitted(run))]
    numbers = [slurm.queue()[job].job for job in jobs]
    # What a job gets before its time is up, and what an administrator does.
    stops = [["scancel", "--signal=USR2", numbers[0]], ["scontrol", "requeue", numbers[1]]]
    to_stop = dict(enumerate(stops))

    def stop_what_trains() -> bool:
        for index in [index for index in to_stop if steps_done(runs[index].directory())]:
            subprocess.run(to_stop.pop(index), check=True)
        return not to_stop

    wait_until(stop_what_trains, "both were stopped")
    assert main([*table, "launcher=slurm", "cluster=local"]) == DONE
    assert "submitted 0 of 2 runs" in capsys.readouterr().out

    wait_until(lambda: not slurm.queue(), "the queue is empty")
    for run, job in zip(runs, jobs, strict=True):
        assert "resumes from step" in (slurm.log(run, job) or Path()).read_text()
    assert rows(there) == local_rows
    capsys.readouterr()
    assert main([*table, "--status"]) == DONE
    assert "2 finished" in capsys.readouterr().out
    assert main([*table, "--collect"]) == DONE
    assert "β = 0.999" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_on_a_cluster_submits_each_run_once(
    cluster: str,
    local_rows: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not what waits or runs, nor what is finished; what was cancelled, again."""
    monkeypatch.setenv("SLURM_CONF", cluster)
    words = ["-m", "task=quadratic", "scale=smoke", "seed=0,1", f"results_dir={tmp_path}", *LONG]
    send = [*words, "hydra/launcher=slurm", "cluster=local", "hydra.launcher.hours=0.5"]

    def submitted() -> str:
        assert main(send) == DONE
        return capsys.readouterr().out.partition(" runs")[0]

    assert submitted() == "submitted 2 of 2"
    assert submitted() == "submitted 0 of 2"
    cancelled = slurm.submitted(long_runs(tmp_path)[1])
    assert cancelled
    subprocess.run(
        ["scancel", slurm.queue()[cancelled].job], check=True
    )  # at once, before it may have finished
    assert main([*words, "--status"]) == DONE
    assert "seed=1" in capsys.readouterr().out
    wait_until(lambda: cancelled not in slurm.queue(), "it is cancelled")
    directory = RunDirectory(long_runs(tmp_path)[1].directory())
    wait_until(lambda: not directory.held(), "its process has ended")
    monkeypatch.setattr(slurm, "ENDING", 0.0)
    with directory.locked():  # somebody runs it by hand
        assert main(send) == DONE
    shown = capsys.readouterr()
    assert shown.out.startswith("submitted 0 of 2")
    assert f"{directory.path}: is being run by process {os.getpid()} of " in shown.err
    assert submitted() == "submitted 1 of 2"
    wait_until(lambda: not slurm.queue(), "the queue is empty")
    assert main([*words, "--collect"]) == DONE
    assert capsys.readouterr().out.count("finished") == 2
    assert rows(tmp_path) == local_rows
    assert submitted() == "submitted 0 of 2"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("processes", ["", "2"])
def test_the_plain_template_goes_on_where_it_was_stopped(
    cluster: str, processes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`slurm/run.sbatch`, which gets what it gets before its time is up; alone, and as two processes of torchrun."""
    monkeypatch.setenv("SLURM_CONF", cluster)
    words = ["task=ddpm", "scale=smoke", "task.dropout=0", "steps=150", "log_every=1", "checkpoint.every=10"]
    words += ["device=cpu", "evaluate.every=null"]
    options = [
        f"--output={tmp_path}/log",
        "--gpus-per-node=0",
        f"--cpus-per-task={processes or 1}",
        "--parsable",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"PROCESSES": processes} if processes else {})
    command = [
        "sbatch",
        *options,
        str(ROOT / "slurm" / "run.sbatch"),
        *words,
        f"results_dir={tmp_path}/cluster",
    ]
    sent = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    job = sent.stdout.strip()
    there = compose.configuration([*words, f"results_dir={tmp_path}/cluster"])
    wait_until(lambda: steps_done(there.directory()) > 10, "it trains")
    subprocess.run(["scancel", "--signal=USR2", "--batch", job], check=True)
    wait_until(lambda: not slurm.queue(), "the queue is empty")
    message = (tmp_path / "log").read_text()
    assert "stopped at step" in message and "resumes from step" in message
    result = RunDirectory(there.directory()).result()
    assert result and result.environment["processes"] == int(processes or 1)
    if not processes:
        here = compose.configuration([*words, f"results_dir={tmp_path}/here"])
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        run_missing([here])
        assert rows(tmp_path / "cluster") == rows(tmp_path / "here")
