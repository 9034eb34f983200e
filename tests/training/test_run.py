"""Runs: they diverge, fail, are trained again, are compiled. What holds for every task is in `emabench.testing.suite`."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from emabench.averaging import Averager
from emabench.compose import configuration
from emabench.errors import Interrupted, RunFailed
from emabench.runs.directory import RunDirectory
from emabench.testing.suite import final_state, one_thread, smoke, stop_after  # noqa: F401 - one_thread is a fixture
from emabench.training import checkpoint
from emabench.training.start import run
from emabench.training.trainer import Trainer


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
    """Also where training was not finished; from there on the same command resumes what it began."""
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
    assert list(directory.checkpoints.iterdir()) and list(directory.snapshots.iterdir())
    before = {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()}
    with pytest.raises(ZeroDivisionError), directory.cleared():
        assert not directory.result()
        assert not list(directory.checkpoints.iterdir()) and not directory.snapshots.exists()
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
