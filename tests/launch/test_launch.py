"""Several runs: each once, checked before any starts, and no failure takes the others down."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from emabench import cli
from emabench.cli import main
from emabench.config import Config
from emabench.errors import DONE, FAILED, INTERRUPTED, MISTAKE, Interrupted
from emabench.launch import local
from emabench.launch.local import RunProgress, default_jobs, missing, run_missing
from emabench.launch.status import run_state
from emabench.paths import COMMAND
from emabench.runs import history
from emabench.runs.directory import RunDirectory, run_directories
from emabench.runs.result import Result
from emabench.training.interruption import interrupting, stop_requests
from tests.test_config import config


def smoke(results_dir: Path, *overrides: str) -> Config:
    return config(f"results_dir={results_dir}", "device=cpu", *overrides)


def statuses(results_dir: Path) -> list[str]:
    return [json.loads((path / "result.json").read_text())["status"] for path in run_directories(results_dir)]


def test_sweep_runs_every_combination_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-m", "task=quadratic", "scale=smoke", f"results_dir={tmp_path}", "device=cpu"]
    words += ["seed=0,1", "ema.decay=0.9,0.99"]
    assert main(words) == DONE
    assert statuses(tmp_path) == ["finished"] * 4
    shown = capsys.readouterr().out
    assert "seed=1 ema.decay=0.99" in shown
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert main(words) == DONE
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")} == before


def test_a_bad_job_is_said_before_the_first_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", "task=quadratic", "scale=smoke", f"results_dir={tmp_path}", "ema.decay=0.9,1.5"]
    assert main(words) == MISTAKE
    assert "ema.decay=1.5" in capsys.readouterr().err
    assert not run_directories(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=moco", "task.queue=64,65"], "task.queue=65: must be a multiple"),
        (["task=quadratic", "devices=2", "seed=0,1"], "devices=2: task quadratic trains in one process"),
        (["task=td3", "task.environment=Pendulum-v1,Nix-v0"], "task.environment=Nix-v0"),
        (["task=bert", "task.heads=2,3"], "task.heads=3: does not divide"),
        (["task=classification", "task.data=digits,cifar100"], "task.data=cifar100: not found"),
        (["task=lstm", "task.corpus=topics,nix.txt"], "task.corpus=nix.txt: there is no such file"),
    ],
)
def test_what_a_task_would_refuse_is_said_before_the_first_starts(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [f"results_dir={tmp_path}", f"data_dir={tmp_path}"]
    assert main(["-m", *words, "scale=smoke", *folders]) == MISTAKE
    assert message in capsys.readouterr().err
    assert not run_directories(tmp_path)


def test_a_diverging_job_takes_no_other_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-m", "task=quadratic", "scale=smoke", f"results_dir={tmp_path}", "device=cpu"]
    assert main([*words, "jobs=1", "optimizer.lr=1e30,0.1"]) == FAILED
    assert sorted(statuses(tmp_path)) == ["diverged", "finished"]
    assert "diverged" in capsys.readouterr().out


def test_a_sweep_over_tasks_names_the_metric_of_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    words = ["-m", "task=quadratic,classification", "scale=smoke", f"results_dir={tmp_path}", "device=cpu"]
    words += ["jobs=1"]
    assert main(words) == DONE
    lines = capsys.readouterr().out.splitlines()
    for task, metric in (("quadratic", "excess_loss"), ("classification", "top1")):
        assert any(f"task={task}" in line and metric in line for line in lines)


def test_a_table_whose_runs_fail_says_so_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from emabench.training.trainer import Trainer

    def train(self: Trainer, until: int) -> str | None:
        raise RuntimeError("something broke")

    words = [
        "table",
        "td3_target",
        "scale=smoke",
        "seeds=1",
        "jobs=1",
        f"results_dir={tmp_path}",
        "device=cpu",
    ]
    monkeypatch.setattr(Trainer, "train", train)
    assert main(words) == FAILED
    assert "runs failed" in capsys.readouterr().err
    assert main([*words[:-3], *words[-2:], "--collect"]) == DONE  # which only says what is there


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["device=auto,cpu"], "device=cpu: is the same run as device=auto"),
        (["jobs=two"], "jobs=two: should be a whole number"),
        (["jobs=²"], "jobs=²: should be a whole number"),
        (["launcher=slurm", "cluster.hours=2026-99-99"], "cluster.hours=2026-99-99: the value is not YAML"),
        (["launcher=slurm", "jobs=2"], "jobs=2: is for launcher=local"),
        (["cluster=local"], "cluster=local: is for launcher=slurm"),
        (["hydra/launcher=joblib"], "hydra/launcher=joblib: is neither local"),
        (["hydra.launcher.partition=gpu"], "hydra.launcher.partition=gpu: is for launcher=slurm"),
        (["runs_per_jub=2"], "did you mean 'runs_per_job'"),
        (["--colect"], "--colect: there is no such option"),
        (["--status", "--collect"], "--collect: one of"),
        (["ema.decay=[0.9,", "0.99]"], "put the whole word in quotes"),
    ],
)
def test_words_that_a_sweep_cannot_take(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-m", "task=quadratic", "scale=smoke", f"results_dir={tmp_path}", *words]) == MISTAKE
    assert message in capsys.readouterr().err
    assert not run_directories(tmp_path)


def test_a_sweep_is_looked_at_as_a_table_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-m", "task=quadratic", "scale=smoke", f"results_dir={tmp_path}", "device=cpu", "seed=0,1"]
    assert main(["task=quadratic", *words[2:-1], "seed=1"]) == DONE
    capsys.readouterr()
    assert main([*words, "--dry-run"]) == DONE
    (zero, one) = capsys.readouterr().out.splitlines()
    assert zero.startswith("seed=0") and zero.endswith("to do")
    assert one.startswith("seed=1") and one.endswith("finished")
    assert main([*words, "--status"]) == DONE
    assert "1 finished, 1 to do" in capsys.readouterr().out
    assert main([*words, "--collect"]) == DONE
    assert "not run" in capsys.readouterr().out
    assert len(run_directories(tmp_path)) == 1


def test_torchrun_is_for_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    words = ["task=classification", "scale=smoke", f"results_dir={tmp_path}"]
    assert main(["-m", *words, "seed=0,1"]) == MISTAKE
    assert "devices=N" in capsys.readouterr().err
    assert main(["table", "ddpm_cifar10", "scale=smoke", f"results_dir={tmp_path}"]) == MISTAKE


def test_workers_do_not_outlive_who_started_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGKILL takes the sweep; its runs write their checkpoints, and the same command resumes from there."""
    words = ["-m", "task=quadratic", "scale=smoke", "device=cpu", "seed=0,1", "steps=12000", "log_every=100"]
    words += [f"results_dir={tmp_path}"]
    runs = [smoke(tmp_path, f"seed={seed}", "steps=12000", "log_every=100") for seed in (0, 1)]
    sweep = subprocess.Popen([sys.executable, "-m", "emabench", *words, "jobs=2"], stderr=subprocess.DEVNULL)
    wait_for(lambda: all(history.progress(run.directory() / "history.jsonl", 12000)[0] for run in runs))
    sweep.kill()
    sweep.wait()
    wait_for(lambda: not any(RunDirectory(run.directory()).held() for run in runs))
    assert not any(RunDirectory(run.directory()).result_file.exists() for run in runs)
    assert all(list((run.directory() / "checkpoints").iterdir()) for run in runs)
    assert main([*words, "jobs=1"]) == DONE
    assert capsys.readouterr().err.count("resumes from step") == 2


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("ema.decay=0.5", "takes away ema_"),
        ("sedes=3", "did you mean 'seeds'"),
        ("jbs=3", "did you mean 'jobs'"),
    ],
)
def test_words_that_a_table_cannot_take(
    word: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["table", "ddpm_cifar10", "scale=smoke", f"results_dir={tmp_path}", word]) == MISTAKE
    assert message in capsys.readouterr().err
    assert not run_directories(tmp_path)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_side_by_side_gives_what_in_turn_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMAND, "emabench table some jobs=2")
    in_turn = [smoke(tmp_path / "a", f"seed={seed}") for seed in (0, 1)]
    side_by_side = [smoke(tmp_path / "b", f"seed={seed}") for seed in (0, 1)]
    run_missing(in_turn, jobs=1)
    run_missing(side_by_side, jobs=2)
    assert missing(in_turn + side_by_side) == []
    for a, b in zip(in_turn, side_by_side, strict=True):
        first, second = RunDirectory(a.directory()).result(), RunDirectory(b.directory()).result()
        assert first
        assert second
        assert first.rows == second.rows
        # What a user can type again, not how a worker was started.
        assert second.environment["command"] == "emabench table some jobs=2"


def test_a_worker_runs_the_configuration_it_was_given(tmp_path: Path) -> None:
    """What was asked for is in the run's directory: editing conf/ later changes nothing."""
    from emabench.launch.worker import main as work

    asked = smoke(tmp_path, "optimizer.lr=0.3")
    directory = RunDirectory(asked.directory())
    directory.prepare(asked)
    assert work(directory.path) == DONE
    assert yaml.safe_load(directory.config.read_text())["optimizer"]["lr"] == 0.3
    result = directory.result()
    assert result
    assert result.run_id == asked.run_id()


def test_one_run_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    words = ["task=quadratic", "scale=smoke", f"results_dir={tmp_path}", "device=cpu", "ema.decay=[0.9,0.99]"]
    assert main(words) == DONE
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("raw", "ema_0.9", "ema_0.99", "excess_loss"))
    assert main([*words, "optimizer.lr=1e30"]) == FAILED
    assert "diverged" in capsys.readouterr().out


def test_on_a_terminal_every_run_that_goes_has_a_bar(tmp_path: Path) -> None:
    one, other = (smoke(tmp_path, f"seed={seed}", "steps=40") for seed in (0, 1))
    directory = RunDirectory(one.directory())
    directory.prepare(one)
    directory.history.write_text('{"step": 10, "wall": 1.0, "loss": 2.0}\n')
    screen = io.StringIO()
    watch = RunProgress(
        Console(file=screen, force_terminal=True, width=100), 2, {one.directory(): "free, seed 0"}
    )
    with watch.bars:
        for config in (one, other):
            watch.started(config)
        watch.look([one, other])
        watch.bars.refresh()
        seen = screen.getvalue()
        watch.ended(one, 0)
        watch.ended(other, -9)
    assert "free, seed 0" in seen and "10/40" in seen and f"quadratic/{other.run_id()}" in seen
    assert "2 of 2 runs done" in screen.getvalue() and "FAILED (SIGKILL, see" in screen.getvalue()


def test_an_interrupted_sweep_goes_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from emabench.training.trainer import Trainer

    words = ["-m", "task=quadratic", "scale=smoke", f"results_dir={tmp_path}", "device=cpu", "seed=0,1,2"]
    words += ["hydra/launcher=basic"]  # one after the other, in this process
    inner, trained = Trainer.train, []

    def train(self: Trainer, until: int) -> str | None:
        trained.append(self.config.seed)
        if self.config.seed == 1 and trained.count(1) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(self, until)

    monkeypatch.setattr(Trainer, "train", train)
    assert main(words) == INTERRUPTED
    assert trained == [0, 1]  # it ends the sweep, not one job
    assert "the same command resumes" in capsys.readouterr().err
    assert main(words) == DONE
    assert trained == [0, 1, 1, 2]
    shown = capsys.readouterr().out
    assert all(f"seed={seed}" in shown for seed in (0, 1, 2))
    assert shown.count("finished") == 3


@pytest.mark.parametrize("broken", [0, 1])
def test_a_failing_job_takes_no_other_down(
    broken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from emabench.training.trainer import Trainer

    words = ["-m", "task=quadratic", "scale=smoke", f"results_dir={tmp_path}", "device=cpu", "seed=0,1,2"]
    words += ["hydra/launcher=basic"]  # one after the other, in this process
    inner = Trainer.train

    def train(self: Trainer, until: int) -> str | None:
        if self.config.seed == broken:
            raise RuntimeError("something broke")
        return inner(self, until)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train", train)
        assert main(words) == FAILED
    shown = capsys.readouterr()
    assert "something broke" in shown.err
    assert sorted(statuses(tmp_path)) == ["failed", "finished", "finished"]
    assert shown.out.count("finished") == 2
    assert "failed" in shown.out
    assert main(words) == DONE  # the failed one is tried again
    assert statuses(tmp_path) == ["finished"] * 3


def test_a_run_that_another_process_has_takes_no_other_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [smoke(tmp_path, f"seed={seed}") for seed in (0, 1)]
    with RunDirectory(runs[0].directory()).locked():
        assert run_state(runs[0], {}).state == "running"
        run_missing(runs)
    assert run_state(runs[0], {}).state == "to do"
    assert statuses(tmp_path) == ["finished"]
    assert f"{runs[0].directory()} is being run by another process" in capsys.readouterr().err


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_whose_files_are_damaged_takes_no_other_down(
    jobs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [smoke(tmp_path, f"seed={seed}") for seed in range(3)]
    RunDirectory(runs[0].directory()).prepare(runs[0])
    RunDirectory(runs[0].directory()).config.write_text("{")
    run_missing(runs, jobs)
    assert [RunDirectory(run.directory()).result_file.exists() for run in runs] == [False, True, True]
    assert f"{runs[0].directory() / 'config.yaml'}: is damaged" in capsys.readouterr().err
    (runs[1].directory() / "result.json").write_text("{")
    states = [run_state(run, {}).state for run in runs]
    assert states == ["to do", "damaged", "finished"]


def test_a_signal_while_a_run_ends_stops_those_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes when nothing of the first is left to stop: its result is kept, the second does not begin."""
    write = RunDirectory.write_result

    def writing(self: RunDirectory, result: Result) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        write(self, result)

    monkeypatch.setattr(RunDirectory, "write_result", writing)
    runs = [smoke(tmp_path, f"seed={seed}") for seed in range(2)]
    with pytest.raises(Interrupted):
        run_missing(runs)
    assert [RunDirectory(run.directory()).path.exists() for run in runs] == [True, False]
    assert (there := RunDirectory(runs[0].directory()).result()) and there.status == "finished"
    with pytest.raises(KeyboardInterrupt), interrupting():
        os.kill(os.getpid(), signal.SIGTERM)  # afterwards signals are whose they were


def test_a_signal_while_torch_is_loaded_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in the middle of that would abort the process."""
    monkeypatch.setattr(torch.__spec__, "_initializing", True, raising=False)
    with interrupting():
        signal.raise_signal(signal.SIGINT)
        with stop_requests() as stop:
            assert stop
    with stop_requests() as stop:
        assert not stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_that_something_swallows_is_one_all_the_same(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Imports and parsers turn a KeyboardInterrupt into nothing, or into errors of their own."""
    run = smoke(tmp_path)

    def swallowing(words: list[str]) -> int:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(number)
        if words:
            raise ImportError("cannot load module more than once per process")
        run_missing([run])
        return DONE

    monkeypatch.setattr(cli, "_dispatch", swallowing)
    assert main([]) == INTERRUPTED
    assert main(["other"]) == INTERRUPTED
    assert not run_directories(tmp_path)
    monkeypatch.undo()
    run_missing([run])
    assert statuses(tmp_path) == ["finished"]


def test_runs_at_a_time_by_what_each_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = smoke(tmp_path)
    four = one.model_copy(update={"devices": 4})
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    assert (default_jobs([one]), default_jobs([four])) == (6, 1)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert default_jobs([one]) == 3
    monkeypatch.setattr(local, "_gpus", lambda: [str(n) for n in range(8)])
    on_gpus = [run.model_copy(update={"device": "auto"}) for run in (one, four)]
    assert [default_jobs([run]) for run in on_gpus] == [8, 2]
    seen = []

    def start(config: Config, environment: dict[str, str]) -> object:
        seen.append(environment["CUDA_VISIBLE_DEVICES"])
        return type("Process", (), {"poll": lambda self: 0, "returncode": 0})()

    monkeypatch.setattr(local, "_start", start)
    words = ("device=auto", "task=ddpm", "devices=4")
    many = [config(f"results_dir={tmp_path}", *words, f"seed={seed}") for seed in range(2)]
    run_missing(many, jobs=2)
    assert sorted(seen) == ["0,1,2,3", "4,5,6,7"]
