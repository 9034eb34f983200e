"""Runs as SLURM jobs, through submitit: one array a submission, each job holding the configuration of its runs.

A job that is preempted or reaches its time limit finishes its step, writes its checkpoint and is requeued. What
it runs was settled when it was submitted: editing `conf/` afterwards changes nothing.
"""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import random
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from emabench import plugins
from emabench.config import Config, Count, Positive, Section, checked
from emabench.errors import INTERRUPTED, Interrupted, RunFailed, UserError, nearest
from emabench.late import Late
from emabench.launch.local import missing, run_missing
from emabench.launch.plan import check
from emabench.paths import conf_dir
from emabench.runs.directory import RunDirectory, writable
from emabench.runs.files import read_bytes, read_yaml, write_text
from emabench.training.interruption import was_interrupted

if TYPE_CHECKING:
    import submitit
else:
    submitit = Late("submitit")

# An account made of digits alone is still a word.
Word = Annotated[str | None, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
ENDING = 10.0  # seconds that the process of a job which has left the queue may need to end
RESERVED = {"array", "job-name", "output", "error", "open-mode", "signal", "requeue", "no-requeue", "wrap"}


class Profile(Section):
    """What a job asks of the cluster: `conf/cluster/default.yaml` says what each key means."""

    partition: Word
    account: Word
    qos: Word
    constraint: Word
    gpus: Annotated[int, Field(ge=0)]
    cpus: Count
    mem: Word
    hours: Positive
    notice: Count
    requeues: Annotated[int, Field(ge=0)]
    parallel: Count
    setup: list[str]
    sbatch: dict[str, Any]

    @field_validator("sbatch")
    @classmethod
    def _no_reserved_options(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(RESERVED & {key.replace("_", "-") for key in value}):
            raise ValueError(f"{', '.join(taken)}: emabench sets that itself")
        return value

    @model_validator(mode="after")
    def _notice_is_shorter_than_the_job(self) -> Self:
        if self.notice >= 3600 * self.hours:
            raise ValueError(
                f"notice={self.notice}: is as long as the whole job (hours={self.hours:g}); lower it"
            )
        return self


def profile(name: str, changes: Mapping[str, Any]) -> Profile:
    """A profile of `conf/cluster/`, or of a file given by its path, with some values changed. Raises UserError."""
    folder = conf_dir() / "cluster"
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        close = nearest(name, [file.stem for file in folder.glob("*.yaml")])
        raise UserError(f"cluster={name}: there is no such profile{close}; or give the path of a YAML file")
    try:
        values = [read_yaml(p, aliases=True) or {} for p in (folder / "default.yaml", path)]
        return checked(Profile, {**values[0], **values[1], **changes}, at="cluster")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cluster={name}: {path} is not a YAML file of keys and values") from error


class Job:
    """What is pickled at submission and called on the cluster: some runs, `jobs` of them side by side."""

    def __init__(self, configs: Sequence[Config], jobs: int) -> None:
        self.configs, self.jobs = [config.model_dump() for config in configs], jobs
        self.folders = plugins.folders()

    def __call__(self) -> None:
        with plugins.using(self.folders):
            configs = [checked(Config, values) for values in self.configs]
            try:
                run_missing(configs, self.jobs)
            except Interrupted:
                hand_back()
            if failed := missing(configs):
                raise RunFailed(
                    f"{len(failed)} of {len(configs)} runs failed, {failed[0].directory()} for one"
                )

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit calls at a requeue: the job is submitted again as it is, its runs hold their state."""
        return submitit.helpers.DelayedSubmission(self)


def hand_back() -> NoReturn:
    """End this job, whose run has stopped at a checkpoint, and have SLURM start it again.

    Not where SLURM is ending it by a decision of its own: it requeues what it preempts or is asked to requeue, and
    what was cancelled stays cancelled.
    """
    job = submitit.JobEnvironment()
    if job.cluster != "slurm" or _state(job.job_id) == "RUNNING":
        signal.raise_signal(signal.SIGUSR2)  # submitit's own handler is back in place: it requeues and exits
    raise SystemExit(INTERRUPTED)


def _state(job: str) -> str:
    """What SLURM says of this job; one that gets no answer in about two minutes is running, as it shows."""
    for wait in (1, 3, 9, 27, 0):
        try:
            return next(iter(_squeue("--format=%T", f"--jobs={job}", timeout=15)), "")
        except UserError:  # busiest when an array's jobs all come to their end
            time.sleep(wait * (1 + random.random()) / 2)
    return "RUNNING"


@contextmanager
def outside_jobs() -> Iterator[None]:
    """Submit from within a job: what SLURM set for that one is not handed on, the user's own settings are."""
    own = {
        key: value for key, value in os.environ.items() if key == "SLURM_CONF" or key.startswith("SBATCH_")
    }
    with submitit.helpers.clean_env():
        os.environ.update(own)
        yield


class Submitted(NamedTuple):
    """Where a run was sent: the name is of one submission, because job numbers start again on another cluster."""

    name: str
    place: int  # in the array


class Queued(NamedTuple):
    """A job as the queue has it."""

    job: str  # its number, 17_3 say
    state: str  # PENDING, RUNNING, …
    reason: str  # why it is pending


def submit(title: str, configs: Sequence[Config], profile: Profile, runs_per_job: int) -> list[Submitted]:
    """Submit the runs that are neither finished nor in the queue nor running here; returns what was submitted.

    `title` begins the name of the jobs. Raises UserError.
    """
    if not shutil.which("sbatch"):
        raise UserError(
            "launcher=slurm: sbatch is not on the PATH; run this where jobs are submitted from, "
            "or try it on this machine: see slurm/README.md"
        )
    with _submission_lock(Path(configs[0].results_dir) / ".slurm"):
        return _submit(title, configs, profile, runs_per_job)


@contextmanager
def _submission_lock(folder: Path) -> Iterator[None]:
    """One at a time asks what is queued and adds to it: a second submission then sees what the first has sent."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a")
    except OSError as error:
        raise UserError(f"results_dir={folder.parent}: cannot write {folder} ({error.strerror})") from error
    with file:
        with suppress(OSError):  # a file system without locks: where it matters, a run says so
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _submit(title: str, configs: Sequence[Config], profile: Profile, runs_per_job: int) -> list[Submitted]:
    queued = queue()
    todo = _without_held([config for config in missing(configs) if submitted(config) not in queued])
    if not todo:
        return []
    name = f"{title}-{secrets.token_hex(3)}"
    folder = Path(todo[0].results_dir).absolute() / ".slurm" / name
    _check_path(folder)
    check(todo)  # their nodes see this data_dir
    for config in todo:
        if profile.gpus and config.devices > profile.gpus and config.device != "cpu":
            raise UserError(
                f"devices={config.devices}: a job has cluster.gpus={profile.gpus} of them; "
                f"give it cluster.gpus={config.devices}"
            )
        RunDirectory(config.directory()).prepare(config)
    with writable(folder):  # this user's alone: it holds pickles, which the jobs run
        folder.mkdir(parents=True)
        folder.chmod(0o700)
    python = f"{shlex.quote(sys.executable)} -P"  # nothing is imported from the working directory
    executor = submitit.SlurmExecutor(folder, max_num_timeout=profile.requeues, python=python)
    executor.update_parameters(**_parameters(name, profile, folder))
    # Reset once, here: a requeued job has to resume.
    again = [
        directory
        for config in todo
        if config.rerun
        if not (directory := RunDirectory(config.directory())).rerun_begun.exists()
    ]
    todo = [config.model_copy(update={"rerun": False}) for config in todo]
    groups = [todo[start : start + runs_per_job] for start in range(0, len(todo), runs_per_job)]
    sent = [Submitted(name, place) for place, group in enumerate(groups) for _ in group]
    with ExitStack() as stack:
        for directory in again:
            with directory.locked():
                stack.enter_context(directory.cleared())  # and as it was where the jobs are refused
        # Noted before they are in the queue: whatever breaks this off, no run is submitted twice.
        for config, job in zip(todo, sent, strict=True):
            write_text(_record(config), json.dumps(job._asdict()) + "\n")
        if was_interrupted():
            raise KeyboardInterrupt
        stack.enter_context(outside_jobs())
        stack.enter_context(redirect_stderr(io.StringIO()))  # errors are raised as well
        try:
            executor.submit_array([Job(group, runs_per_job) for group in groups])
        except (RuntimeError, OSError, IndexError) as error:  # sbatch's own, or that it cannot be run or read
            if not isinstance(error, OSError):  # after which they may be in the queue all the same
                for config in todo:
                    _record(config).unlink(missing_ok=True)
            raise UserError(
                f"sbatch refused the jobs: {_reason(error)} (what they ask for: cluster.KEY=VALUE)"
            ) from error
    return sent


def _without_held(configs: Sequence[Config]) -> list[Config]:
    """Those that no process holds; the others are reported, with the process.

    A job that was cancelled leaves the queue before its process has ended: what was once submitted is waited for.
    """
    end = time.monotonic() + ENDING
    free = []
    for config in configs:
        directory = RunDirectory(config.directory())
        while not config.rerun and submitted(config) and directory.held() and time.monotonic() < end:
            time.sleep(0.1)
        if config.rerun or not directory.held():
            free.append(config)
        else:
            print(f"{directory.path}: is being run by {directory.holder()}; not submitted", file=sys.stderr)
    return free


def _reason(error: Exception) -> str:
    """The message of sbatch, without its advice to read its manual."""
    lines = [line for line in str(error).splitlines() if line.strip() and 'Try "sbatch' not in line]
    own = [line for line in lines if line.startswith("sbatch: ")] or lines[-1:] or [type(error).__name__]
    return "; ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in own)


def _check_path(folder: Path) -> None:
    """Raises UserError where SLURM would read a path as a pattern, or a job's script could not hold it."""
    if any(letter in "%\\" or not letter.isprintable() for letter in str(folder)):
        raise UserError(
            f"results_dir={str(folder.parent.parent)!r}: SLURM takes no %, \\ or control character in the names of "
            "its files; choose another with results_dir=…"
        )


def _parameters(name: str, profile: Profile, folder: Path) -> dict[str, Any]:
    """The profile in submitit's words."""
    # Who may write to the results directory could put another folder in the place of this one.
    own = f"[ -O {shlex.quote(str(folder))} ] || {{ echo 'the folder of this job is of another user'; exit 1; }}"
    safe = "export PYTHONSAFEPATH=1"  # for what the job starts
    # A run that resumes on another node needs the same number of threads; srun does not inherit the job's.
    threads = "export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"
    return {
        "job_name": name,
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "gpus_per_node": profile.gpus or None,
        "cpus_per_task": profile.cpus,
        "mem": profile.mem,
        "time": math.ceil(60 * profile.hours),
        "signal_delay_s": profile.notice,
        "array_parallelism": profile.parallel,
        "stderr_to_stdout": True,
        "setup": [own, safe, threads, *profile.setup],
        "additional_parameters": {"requeue": True, **profile.sbatch},
    }


def _record(config: Config) -> Path:
    return config.directory() / "job.json"


def submitted(config: Config) -> Submitted | None:
    """Where a run was last sent, None where it never was."""
    try:
        record = json.loads(read_bytes(_record(config), 10_000))
        return Submitted(str(record["name"]), int(record["place"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def log(config: Config, sent: Submitted) -> Path | None:
    """What the job of a run printed; None where it never began."""
    logs = (Path(config.results_dir) / ".slurm" / sent.name).glob("*_log.out")
    return next((path for path in logs if _place(path.name.removesuffix("_0_log.out")) == sent.place), None)


def queue() -> dict[Submitted, Queued]:
    """This user's jobs that wait or run. Raises UserError where SLURM does not answer."""
    jobs = {}
    for line in _squeue("--me", "--format=%j|%i|%T|%r"):
        name, job, state, reason = (*line.split("|", 3), "", "", "")[:4]
        jobs[Submitted(name, _place(job))] = Queued(job, state, reason)
    return jobs


def _place(job: str) -> int:
    """The place of a job in its array: 3 of 17_3; an array of one is a job without."""
    place = job.partition("_")[2]
    return int(place) if place.isdecimal() else 0


def _squeue(*words: str, timeout: float = 120) -> list[str]:
    """The lines that squeue prints, one for each job of an array."""
    try:
        done = subprocess.run(
            ["squeue", "--noheader", "--array", *words], capture_output=True, text=True, timeout=timeout
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"SLURM cannot be asked: squeue: {error}") from error
    if done.returncode:
        raise UserError(f"SLURM cannot be asked: {(done.stderr.strip() or 'squeue failed').splitlines()[-1]}")
    return done.stdout.splitlines()
