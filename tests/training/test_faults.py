"""What goes wrong around a run, made to happen: the run says it in a line, nothing is lost, the same command resumes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pty
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from emabench.averaging import Averager
from emabench.cli import main
from emabench.config import Config
from emabench.errors import DONE, FAILED, INTERRUPTED, MISTAKE, Interrupted, RunFailed, UserError
from emabench.runs.directory import RunDirectory
from emabench.testing.suite import assert_same, final_state, smoke, stop_after
from emabench.training.checkpoint import load_latest
from emabench.training.interruption import stop_requests
from emabench.training.start import run
from emabench.training.trainer import Trainer
from tests.tasks.test_classification import photographs

LONG = ("steps=200", "checkpoint.every=10", "evaluate.every=50", "checkpoint.keep=100")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Config:
    torch.set_num_threads(1)
    config = smoke("quadratic", tmp_path_factory.mktemp("undisturbed"), *LONG)
    run(config)
    return config


def assert_as_undisturbed(config: Config, undisturbed: Config) -> None:
    mine, theirs = (RunDirectory(c.directory()).result() for c in (config, undisturbed))
    assert mine
    assert theirs
    assert mine.rows == theirs.rows
    assert_same(final_state(config), final_state(undisturbed))


# -- the disk ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["disk", "limit"])
def little_room(
    request: pytest.FixtureRequest, tmp_path: Path, undisturbed: Config
) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A folder with room for about half of what a run writes, and what makes more."""
    whole = RunDirectory(undisturbed.directory())
    if request.param == "limit":  # on the size of a file, as a quota's: history.jsonl grows past it
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (whole.history.stat().st_size * 7 // 8, before[1]))
        try:
            yield tmp_path, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return
    pages = sum(-(-path.stat().st_size // 4096) for path in whole.path.rglob("*") if path.is_file())
    mount = ["mount", "-t", "tmpfs", "-o", f"size={4 * (pages // 2)}k", "tmpfs", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    more = ["mount", "-o", "remount,size=10m", str(tmp_path)]
    try:
        yield tmp_path, lambda: subprocess.run(more, check=True) and None
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_full_disk_is_said_and_loses_nothing(
    little_room: tuple[Path, Callable[[], None]], undisturbed: Config
) -> None:
    folder, make_room = little_room
    config = undisturbed.model_copy(update={"results_dir": str(folder)})
    with pytest.raises(RunFailed) as failed:
        run(config)
    reported_text = str(failed.value)
    assert "no room in" in reported_text
    assert str(folder) in reported_text
    assert "make room" in reported_text
    directory = RunDirectory(config.directory())
    found = load_latest(directory.checkpoints, pytest.fail)  # what was whole is whole
    assert found
    assert 10 <= found[0] < config.steps
    assert not list(directory.path.rglob("*.tmp"))
    with pytest.raises((RunFailed, UserError), match="room"):
        run(config)  # still full: reported again, still nothing lost
    assert load_latest(directory.checkpoints, pytest.fail)
    make_room()
    assert run(config).status == "finished"
    assert_as_undisturbed(config, undisturbed)


def test_what_a_killed_process_left_behind_goes(tmp_path: Path) -> None:
    config = smoke("quadratic", tmp_path)
    directory = RunDirectory(config.directory())
    directory.prepare(config)
    left = directory.checkpoints / ".step-00000001-0123456789abcdef.pt.4711.tmp"
    left.write_bytes(b"half")
    run(config)
    assert not left.exists()


def test_a_results_dir_that_cannot_be_written_to_is_the_users_to_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file system mounted read-only, where one may be; else a path below a file."""
    words = ["task=quadratic", "scale=smoke", "device=cpu"]
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path)]
    mounted = shutil.which("mount") and not subprocess.run(mount, capture_output=True).returncode
    try:
        results = tmp_path if mounted else Path(os.devnull)
        assert main([*words, f"results_dir={results}/results"]) == MISTAKE
    finally:
        if mounted:
            subprocess.run(["umount", str(tmp_path)], check=True)
    reported_text = capsys.readouterr().err
    assert f"results_dir={results}/results" in reported_text
    assert "choose another" in reported_text


# -- checkpoints ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    undisturbed: Config,
    tmp_path: Path,
    damage: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = undisturbed.model_copy(update={"results_dir": str(tmp_path)})
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        stop_after(patched, 105)
        run(config)
    latest = max(RunDirectory(config.directory()).checkpoints.iterdir())
    assert "00000105" in latest.name
    data = bytearray(latest.read_bytes())
    data[len(data) // 2] ^= 1
    latest.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    run(config)
    reported_text = capsys.readouterr().err
    assert f"{latest} is damaged" in reported_text
    assert "resumes from step 100" in reported_text
    assert_as_undisturbed(config, undisturbed)


def test_a_checkpoint_of_another_version_is_refused_in_words(undisturbed: Config, tmp_path: Path) -> None:
    from emabench.training import checkpoint

    config = undisturbed.model_copy(update={"results_dir": str(tmp_path)})
    directory = RunDirectory(config.directory())
    directory.prepare(config)
    path = checkpoint.save(directory.checkpoints, 10, {"task": {}, "weights": {}}, keep=1)
    directory.rerun_begun.touch()  # also where rerun=true had been given before
    with pytest.raises(RunFailed, match=r"another version.*rerun=true"):
        run(config)
    assert path.exists()
    assert run(config.model_copy(update={"rerun": True})).status == "finished"


# -- processes --------------------------------------------------------------------------------------------------


def test_of_two_processes_on_one_run_the_second_leaves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = smoke("quadratic", tmp_path)
    directory = RunDirectory(config.directory())
    directory.prepare(config)
    before = directory.config.read_bytes()
    program = (
        "import sys, pathlib; from emabench.runs.directory import RunDirectory\n"
        "with RunDirectory(pathlib.Path(sys.argv[1])).locked(): print('held', flush=True); sys.stdin.read()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", program, str(directory.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert first.stdout
    assert first.stdout.readline() == b"held\n"
    words = ["task=quadratic", "scale=smoke", f"results_dir={tmp_path}", "device=cpu", "log_every=2"]
    try:
        assert main(words) == MISTAKE
        assert f"is being run by process {first.pid}" in capsys.readouterr().err
        assert main(["evaluate", str(directory.path)]) == MISTAKE
        assert not directory.history.exists()
        assert directory.config.read_bytes() == before
    finally:
        first.kill()
        first.communicate()
    assert main(words) == DONE  # the lock died with its process


def test_a_terminal_that_closes_stops_the_run_as_a_signal_does(undisturbed: Config, tmp_path: Path) -> None:
    """A hang-up, and from then on a terminal to which every write is an error."""
    config = undisturbed.model_copy(update={"results_dir": str(tmp_path)})
    words = ["task=quadratic", "scale=smoke", "device=cpu", f"results_dir={tmp_path}", *LONG, "log_every=2"]
    directory = RunDirectory(config.directory())
    pid, terminal = pty.fork()
    if not pid:  # the child: the terminal is its standard output and error
        os.environ["OMP_NUM_THREADS"] = "1"
        slow = "from emabench.tasks.quadratic import Task; import time; inner = Task.train_step\n"
        slow += (
            "Task.train_step = lambda task, batch, step: (time.sleep(0.01), inner(task, batch, step))[1]\n"
        )
        slow += "import sys; from emabench.cli import main; sys.exit(main(sys.argv[1:]))"
        os.execv(sys.executable, [sys.executable, "-c", slow, *words])
    while not list(directory.checkpoints.glob("step-*")):
        assert select.select([terminal], [], [], 100)[0], "nothing was shown"
        os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == INTERRUPTED
    found = load_latest(directory.checkpoints, pytest.fail)
    assert found and found[0] < config.steps
    assert directory.result() is None
    run(config)
    assert_as_undisturbed(config, undisturbed)


def test_a_hang_up_that_was_to_be_ignored_is() -> None:
    """`nohup emabench …` keeps running."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop
            signal.raise_signal(signal.SIGTERM)
            assert stop
    finally:
        signal.signal(signal.SIGHUP, before)


def photographs_run(folder: Path) -> list[str]:
    """Words of a run with processes of its own that read its data."""
    words = ["task=classification", "scale=smoke", "device=cpu", "task.data=imagenet", "task.image_size=16"]
    words += [f"data_dir={photographs(folder)}", f"results_dir={folder}/results", "batch_size=4"]
    return [*words, "ema.decay=0.9"]


def test_a_signal_to_all_processes_of_a_run_stops_it_at_a_step(tmp_path: Path) -> None:
    """As SLURM ends a job step, and as a terminal interrupts: those that read data hear it as well."""
    words = [*photographs_run(tmp_path), "workers=2", "steps=100000", "checkpoint.every=5"]
    command = [sys.executable, "-m", "emabench", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list((tmp_path / "results").glob("classification/*/checkpoints/step-*")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, reported_text = process.communicate(timeout=100)
    assert process.returncode == INTERRUPTED, reported_text
    assert "stopped at step" in reported_text


def test_measuring_is_stopped_at_once(
    undisturbed: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What trained is on the disk by then: no set of weights, however long, has to be measured to its end."""
    from emabench.tasks.quadratic import Task

    config = undisturbed.model_copy(update={"results_dir": str(tmp_path)})
    inner = Task.evaluate

    def evaluate(self: Task) -> object:
        os.kill(os.getpid(), signal.SIGUSR2)
        pytest.fail("went on")

    with monkeypatch.context() as patched:
        patched.setattr(Task, "evaluate", evaluate)
        with pytest.raises(Interrupted, match="stopped at step 50 of 200"):
            run(config)
    assert Task.evaluate is inner
    run(config)
    assert_as_undisturbed(config, undisturbed)


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system mounted so: nobody has the run, and nobody could tell."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    config = smoke("quadratic", tmp_path)
    RunDirectory(config.directory()).prepare(config)
    (config.directory() / ".lock").touch()
    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(UserError, match=r"results_dir=.*locks no files \(No locks available\)"):
        run(config)
    assert not RunDirectory(config.directory()).held()


def test_a_run_that_failed_is_not_failed_while_it_is_tried_again(
    undisturbed: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = undisturbed.model_copy(update={"results_dir": str(tmp_path)})
    directory = RunDirectory(config.directory())
    with monkeypatch.context() as patched, pytest.raises(RunFailed):
        patched.setattr(Trainer, "train", lambda self, until: 1 / 0)
        run(config)
    assert directory.error.exists() and directory.result_file.exists()
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        stop_after(patched, 105)
        run(config)
    assert not directory.error.exists() and not directory.result_file.exists()


def test_a_data_worker_that_dies_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*photographs_run(tmp_path), "workers=1", "steps=6", "checkpoint.every=1"]
    inner = Trainer._save

    def killing(self: Trainer) -> None:
        inner(self)
        if self.step == 2:
            self.checkpoints.join()
            reader, *_ = multiprocessing.active_children()
            os.kill(reader.pid or 0, signal.SIGKILL)
            reader.join()

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_save", killing)
        assert main(words) == FAILED
    reported_text = capsys.readouterr().err
    assert "a process that reads data died" in reported_text
    assert "workers=" in reported_text
    assert main(words) == DONE
    assert "resumes from step 2" in capsys.readouterr().err


# -- evaluation -------------------------------------------------------------------------------------------------


def test_a_failed_evaluation_can_be_repeated_alone(
    undisturbed: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from emabench.tasks.quadratic import Task

    config = undisturbed.model_copy(update={"results_dir": str(tmp_path)})
    inner, left = Task.evaluate, 3 * (1 + len(config.profiles()))  # the measurements along the way succeed

    def failing(self: Task) -> object:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.EIO, "Input/output error")
        return inner(self)

    directory = RunDirectory(config.directory())
    with monkeypatch.context() as patched:
        patched.setattr(Task, "evaluate", failing)
        with pytest.raises(RunFailed, match="Input/output"):
            run(config)
        assert main(["evaluate", str(directory.path)]) == FAILED
    assert "Input/output error" in capsys.readouterr().err
    found = load_latest(directory.checkpoints, pytest.fail)
    assert found
    assert found[0] == config.steps
    assert main(["evaluate", str(directory.path)]) == DONE
    assert_as_undisturbed(config, undisturbed)


def test_a_long_measurement_that_is_broken_off_goes_on_with_what_is_left(
    undisturbed: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emabench.tasks.quadratic import Task
    from emabench.training import measure

    config = undisturbed.model_copy(update={"results_dir": str(tmp_path)})
    inner, each = Task.evaluate, 1 + len(config.profiles())
    calls = 0

    def measuring(self: Task) -> object:
        nonlocal calls
        calls += 1
        if calls == 3 * each + 2:  # the last measurement, the second set of weights
            raise OSError(errno.EIO, "Input/output error")
        return inner(self)

    monkeypatch.setattr(measure, "LONG", 0.0)
    monkeypatch.setattr(Task, "evaluate", measuring)
    with pytest.raises(RunFailed, match="Input/output"):
        run(config)
    directory = RunDirectory(config.directory())
    assert [path.name for path in directory.measuring.iterdir()] == [f"{config.steps}-raw.json"]
    before = calls
    run(config)
    assert calls - before == each - 1
    assert not directory.measuring.exists()
    assert_as_undisturbed(config, undisturbed)


# -- time and place ---------------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_changes_nothing(
    undisturbed: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither which checkpoint is the latest nor what is finished is a matter of dates."""
    config = undisturbed.model_copy(update={"results_dir": str(tmp_path)})
    ticks = iter(range(10**9, 0, -3600))
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: float(next(ticks)))
        patched.setattr(time, "time_ns", lambda: next(ticks) * 10**9)
        with patched.context() as stopped, pytest.raises(Interrupted):
            stop_after(stopped, 105)
            run(config)
        kept = sorted(RunDirectory(config.directory()).checkpoints.iterdir())
        for age, path in enumerate(kept):  # the newest has the oldest date
            os.utime(path, (10**9 - 1000 * age, 10**9 - 1000 * age))
        run(config)
        assert run(config).status == "finished"
    assert_as_undisturbed(config, undisturbed)
    assert all(line["wall"] >= 0 for line in _losses(config))


def _losses(config: Config) -> list[dict[str, float]]:
    text = RunDirectory(config.directory()).history.read_text()
    return [line for line in map(json.loads, text.splitlines()) if "wall" in line]


def test_a_results_directory_can_be_moved(
    undisturbed: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To another path, of another user, on a machine without the device or the data it was made with."""
    there = tmp_path / "there"
    config = undisturbed.model_copy(update={"results_dir": str(there), "data_dir": str(tmp_path / "data")})
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        stop_after(patched, 105)
        run(config)
    here = tmp_path / "elsewhere" / "here"
    here.parent.mkdir()
    there.rename(here)
    for name in ("USER", "LOGNAME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "someone"))
    moved = config.model_copy(update={"results_dir": str(here), "data_dir": "data"})
    result = run(moved)
    assert "resumes from step 105" in capsys.readouterr().err
    assert_as_undisturbed(moved, undisturbed)

    directory = RunDirectory(moved.directory())
    settings = yaml.safe_load(directory.config.read_text())
    directory.config.write_text(yaml.safe_dump(settings | {"device": "cuda:7", "results_dir": str(there)}))
    assert main(["evaluate", str(directory.path)]) == MISTAKE
    assert "device=cpu" in capsys.readouterr().err
    assert main(["evaluate", str(directory.path), "device=cpu"]) == DONE
    again = directory.result()
    assert again
    assert again.rows == result.rows
    assert main(["export", str(directory.path), "average=raw", "device=cpu"]) == DONE
    assert main(["compare", str(directory.path)]) == DONE
    assert main(["report", f"results_dir={here}"]) == DONE
    assert "1 run\n" in capsys.readouterr().out
    assert not there.exists()


OLDER = {
    "a key of the configuration is not known any more": ("config.yaml", lambda c: c | {"momentum_of_old": 1}),
    "a key of the configuration is missing": ("config.yaml", lambda c: {k: c[k] for k in c if k != "clip"}),
    "a schema of the result": ("result.json", lambda r: r | {"schema": 0}),
    "a key of the result is missing": ("result.json", lambda r: {k: r[k] for k in r if k != "measured_with"}),
    "a key of the result is not known": ("result.json", lambda r: r | {"of_old": 1}),
}


@pytest.mark.parametrize("older", OLDER)
def test_a_run_of_another_version_is_refused_in_words_and_left_alone(
    undisturbed: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], older: str
) -> None:
    shutil.copytree(undisturbed.results_dir, tmp_path / "results")
    config = undisturbed.model_copy(update={"results_dir": str(tmp_path / "results")})
    path = str(config.directory())
    name, change = OLDER[older]
    file = config.directory() / name
    data = yaml.safe_load(file.read_text())
    file.write_text(json.dumps(change(data)))  # JSON is YAML
    before = file.read_bytes()
    if name == "config.yaml":
        assert main(["evaluate", path, "device=cpu"]) == FAILED
        assert "another version" in capsys.readouterr().err
    else:
        assert main(["compare", path]) == FAILED
        assert str(file) in capsys.readouterr().err
        with pytest.raises(RunFailed, match=r"result\.json"):
            run(config)
    assert main(["report", f"results_dir={tmp_path / 'results'}"]) == DONE
    reported_text = capsys.readouterr().out
    assert "1 run\n" in reported_text or f"not read: {file}" in reported_text
    assert file.read_bytes() == before


# -- the network ------------------------------------------------------------------------------------------------


def test_training_goes_on_without_the_network(
    undisturbed: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr("emabench.runs.tracking._init", _unreachable)
    config = undisturbed.model_copy(update={"results_dir": str(tmp_path), "log": "wandb"})
    run(config)
    reported_text = capsys.readouterr().err
    assert "logging offline" in reported_text
    assert "continuing without it" in reported_text
    assert_as_undisturbed(config, undisturbed)


def _unreachable(*_: object) -> None:
    raise ConnectionError("127.0.0.1:9 refuses")


# -- what is lost or changed is reported ------------------------------------------------------------------------


def stopped_copy(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int = 105) -> Config:
    """The same run elsewhere, stopped after so many steps."""
    again = config.model_copy(update={"results_dir": str(tmp_path)})
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        stop_after(patched, step)
        run(again)
    return again


@pytest.mark.parametrize(("damage", "lost"), [("deleted", 54), ("zeroed", 54), ("flipped", 1), ("none", 0)])
def test_what_the_history_has_lost_is_in_the_result(
    damage: str,
    lost: int,
    undisturbed: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After 105 steps there are 52 lines of losses and 2 measurements."""
    config = stopped_copy(undisturbed, tmp_path, monkeypatch)
    file = RunDirectory(config.directory()).history
    data = bytearray(file.read_bytes())
    data[data.index(b'"step"') + 1] ^= 1
    if damage == "deleted":
        file.unlink()
    elif damage != "none":
        file.write_bytes(data if damage == "flipped" else bytes(len(data)))
    capsys.readouterr()
    result = run(config)
    assert result.status == "finished"
    assert result.environment.get("history_lines_lost", 0) == lost
    assert (f"{lost} lines before step 105 are missing" in capsys.readouterr().err) == bool(lost)


def test_a_checkpoint_under_another_number_is_not_believed(
    undisturbed: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = stopped_copy(undisturbed, tmp_path, monkeypatch)
    path = next(RunDirectory(config.directory()).checkpoints.glob("step-00000105-*"))
    path.rename(path.with_name(path.name.replace("00000105", "00000160")))
    assert run(config).status == "finished"
    reported_text = capsys.readouterr().err
    assert "is of step 105, and was renamed" in reported_text
    assert "resumes from step 100" in reported_text
    assert_as_undisturbed(config, undisturbed)


def test_another_arithmetic_on_resume_is_reported(
    undisturbed: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = stopped_copy(undisturbed, tmp_path, monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(Averager, "arithmetic", "torch")
        patched.setattr(torch, "get_num_threads", lambda: 7)
        stop_after(patched, 150)
        with pytest.raises(Interrupted):
            run(config)
    message = "averages computed by: torch, c before; threads: 7, 1 before"
    assert message in capsys.readouterr().err
    changed = run(config).environment["changed_on_resume"]
    assert [each for each in changed if each.startswith("step 105")] == [
        "step 105: averages computed by: torch, c before",
        "step 105: threads: 7, 1 before",
    ]
    assert run(undisturbed).environment.get("changed_on_resume") is None
