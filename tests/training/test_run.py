"""One suite for every task: it trains, is measured, stops, goes on, diverges, and is not run twice.

Tasks are found by their YAML, so a new one is taken through all of this without a line here.
"""

from __future__ import annotations

import functools
import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch

from emabench.averaging import Averager
from emabench.compose import configuration
from emabench.config import Config
from emabench.errors import Interrupted, RunFailed
from emabench.paths import conf_dir
from emabench.runs.directory import RunDirectory
from emabench.runs.history import lines
from emabench.runs.result import Result
from emabench.training import checkpoint
from emabench.training.start import run
from emabench.training.trainer import Trainer

TASKS = sorted(path.stem for path in (conf_dir() / "task").glob("*.yaml"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def smoke(task: str, results_dir: Path, *overrides: str) -> Config:
    return configuration(
        [f"task={task}", "scale=smoke", f"results_dir={results_dir}", "device=cpu", "log_every=2", *overrides]
    )


def final_state(config: Config) -> dict[str, object]:
    found = checkpoint.load_latest(RunDirectory(config.directory()).checkpoints, pytest.fail)
    assert found is not None
    state = dict(found[1])
    state.pop("seconds")
    return state


def assert_same(a: object, b: object, at: str = "") -> None:
    """Bit for bit: a resumed run is the run."""
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor)
        assert torch.equal(a, b), at
    elif isinstance(a, dict):
        assert isinstance(b, dict)
        assert a.keys() == b.keys(), at
        for key in a:
            assert_same(a[key], b[key], f"{at}.{key}")
    elif isinstance(a, list | tuple):
        assert isinstance(b, list | tuple)
        assert len(a) == len(b), at
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{at}[{i}]")
    else:
        assert a == b, at


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Send this process SIGTERM in the middle of a step, as a scheduler would."""
    inner = Trainer.__init__

    def init(self: Trainer, *args: object, **kwargs: object) -> None:
        inner(self, *args, **kwargs)  # type: ignore[arg-type]
        train_step = self.task.train_step

        def counted(step: int) -> object:
            if step == steps - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return train_step(step)

        self.task.train_step = counted  # type: ignore[assignment, method-assign]

    monkeypatch.setattr(Trainer, "__init__", init)


@pytest.fixture(scope="module", params=TASKS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Result]:
    """Each task's smoke run, never stopped."""
    config = smoke(request.param, tmp_path_factory.mktemp(request.param), "evaluate.every=4")
    return config, run(config)


def test_a_run_measures_every_average(whole: tuple[Config, Result]) -> None:
    config, result = whole
    assert result.status == "finished"
    assert [row.average for row in result.rows] == ["raw", *config.profiles()]
    for row in result.rows:
        assert row.metrics.keys() == result.metrics.keys()
        assert all(value is not None and math.isfinite(value) for value in row.metrics.values()), row
    directory = RunDirectory(config.directory())
    assert directory.result() == result
    history = list(lines(directory.history))
    assert [line["step"] for line in history if "eval" in line] == [*range(4, config.steps, 4), config.steps]
    assert [line["step"] for line in history if "loss" in line] == list(range(2, config.steps + 1, 2))
    text = directory.result_file.read_text()
    data = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} in result.json"))
    assert data["rows"][0]["average"] == "raw"


def test_a_finished_run_is_not_run_again(
    whole: tuple[Config, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, result = whole
    monkeypatch.setattr(Trainer, "__init__", lambda *_: pytest.fail("trained again"))
    assert run(config) == result


def test_stopped_and_resumed_is_bit_identical(
    whole: tuple[Config, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, result = whole
    again = config.model_copy(update={"results_dir": str(tmp_path)})
    with monkeypatch.context() as patched:
        stop_after(patched, 3)
        with pytest.raises(Interrupted, match="stopped at step 3"):
            run(again)
    with monkeypatch.context() as patched:
        stop_after(patched, 4)  # a step after which the weights are measured
        with pytest.raises(Interrupted):
            run(again)
    resumed = run(again)
    assert resumed.rows == result.rows
    assert_same(final_state(again), final_state(config))
    mine, theirs = (
        [
            {key: value for key, value in line.items() if key != "wall"}
            for line in lines(RunDirectory(c.directory()).history)
        ]
        for c in (again, config)
    )
    assert mine == theirs


def test_the_seed_decides(whole: tuple[Config, Result], tmp_path: Path) -> None:
    config, result = whole
    other = config.model_copy(update={"results_dir": str(tmp_path), "seed": 1})
    assert run(other).rows != result.rows


def test_a_diverged_run_is_no_number(tmp_path: Path) -> None:
    config = smoke("classification", tmp_path, "optimizer.lr=1e30", "checkpoint.every=1")
    result = run(config)
    assert result.status == "diverged"
    assert result.reason is not None
    assert "not finite" in result.reason
    assert all(value is None for row in result.rows for value in row.metrics.values())
    assert all("not finite" in reason for row in result.rows for reason in row.reasons.values())
    for state in RunDirectory(config.directory()).checkpoints.iterdir():
        loaded = torch.load(state, weights_only=True)
        model = loaded["task"].get("model", {})
        assert all(torch.isfinite(value).all() for value in model.values() if value.is_floating_point())
    assert run(config) == result  # it would diverge again: not run twice


def test_rerun_begins_anew_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where training was not finished; from there on the same command goes on with what it began."""
    config = smoke("quadratic", tmp_path, "steps=20", "checkpoint.every=1")
    begun = []
    inner = Trainer.begin

    def begin(self: Trainer) -> None:
        begun.append(self.step)
        inner(self)

    monkeypatch.setattr(Trainer, "begin", begin)
    for stop in (12, 8):
        with monkeypatch.context() as patched, pytest.raises(Interrupted):
            stop_after(patched, stop)
            run(config)
        config = config.model_copy(update={"rerun": True})
    run(config)
    assert begun == [0, 0, 8]
    run(config)
    assert begun == [0, 0, 8, 0]


def test_rerun_trains_again(tmp_path: Path) -> None:
    config = smoke("classification", tmp_path, "steps=4")
    result = run(config)
    directory = RunDirectory(config.directory())
    first = directory.result_file.stat().st_mtime_ns
    again = run(config.model_copy(update={"rerun": True}))
    assert directory.result_file.stat().st_mtime_ns > first
    assert again.rows == result.rows


def test_what_training_left_comes_back_where_beginning_anew_fails(tmp_path: Path) -> None:
    config = smoke("quadratic", tmp_path, "snapshots.every=5")
    run(config)
    directory = RunDirectory(config.directory())
    before = {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()}
    with pytest.raises(ZeroDivisionError), directory.anew():
        assert not directory.result()
        assert not list(directory.path.rglob("*.safetensors")) and not directory.snapshots.exists()
        raise ZeroDivisionError
    assert {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()} == before


def test_a_step_that_the_loss_scale_leaves_out_is_no_divergence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is its gradient news for averages that look at gradients, and the step is not averaged again."""
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=2.0**40))
    words = ["precision=fp16", "steps=40", "+averages.g={kind: gradient_share}"]
    config = smoke("classification", tmp_path, *words)
    assert run(config).status == "finished"
    found = checkpoint.load_latest(RunDirectory(config.directory()).checkpoints, pytest.fail)
    assert found
    assert 0 < found[1]["averager"]["updates"] < 40


def test_only_what_is_not_finite_is_divergence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def update(self: Averager) -> None:
        raise ValueError("some other mistake")

    monkeypatch.setattr(Averager, "update", update)
    with pytest.raises(RunFailed, match="some other mistake"):
        run(smoke("quadratic", tmp_path))


def test_a_failure_is_said_and_can_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = smoke("classification", tmp_path, "steps=4")
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_measure", lambda *_, **__: 1 / 0)
        with pytest.raises(RunFailed, match="ZeroDivisionError"):
            run(config)
    directory = RunDirectory(config.directory())
    assert "ZeroDivisionError" in directory.error.read_text()
    assert (there := directory.result())
    assert there.status == "failed"
    assert final_state(config)  # training is safe
    assert run(config).status == "finished"
    assert not directory.error.exists()


@pytest.mark.parametrize("task", [t for t in TASKS if t != "quadratic"])
def test_every_task_trains_in_bf16_and_channels_last(task: str, tmp_path: Path) -> None:
    """Near the run in float32: the layout changes nothing but the order of additions, bf16 keeps 8 bits."""
    plain = smoke(task, tmp_path, "steps=6")
    fast = smoke(task, tmp_path, "steps=6", "precision=bf16", "channels_last=true")
    assert run(plain).status == run(fast).status == "finished"
    losses = [
        [line["loss"] for line in lines(RunDirectory(c.directory()).history) if "loss" in line]
        for c in (plain, fast)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]


@pytest.mark.parametrize("words", [["task=td3"], ["task=lstm", "task.nt_asgd=true"]])
def test_what_is_trained_is_compiled(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._dynamo

    inner = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: inner(self, backend="eager"))
    plain = configuration([*words, "scale=smoke", "device=cpu", f"results_dir={tmp_path}/a"])
    asked = plain.model_copy(update={"compile": True, "results_dir": f"{tmp_path}/b"})
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert run(asked).rows == run(plain).rows
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
