"""What holds for every task: it trains, is measured, stops, resumes bit-identically, and keeps its contract.

Tasks are found as the command finds them, so a new one is tested without a line here. `TASKS` in the module that
imports this, or EMABENCH_TEST_TASKS, names some of them. All runs are at scale=smoke on the CPU with one thread.
"""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from emabench import plugins, tasks
from emabench.compose import configuration
from emabench.config import SCALES, Config, checked
from emabench.errors import Interrupted
from emabench.runs.directory import RunDirectory
from emabench.runs.history import lines
from emabench.runs.result import RAW, Result
from emabench.tasks.base import Direction
from emabench.testing import VARIABLE
from emabench.training import checkpoint
from emabench.training.build import build_task
from emabench.training.interruption import StopRequest
from emabench.training.progress import Progress
from emabench.training.start import run
from emabench.training.trainer import Trainer

CPU = torch.device("cpu")


def task_names() -> list[str]:
    """The tasks that EMABENCH_TEST_TASKS names; without it, all that are found."""
    named = [name for name in os.environ.get(VARIABLE, "").split(",") if name]
    return named or sorted(plugins.find("conf/task"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each task."""
    names = getattr(metafunc.module, "TASKS", None) or task_names()
    if metafunc.function.__name__ == "test_trains_in_bf16":
        names = [name for name in names if "bf16" in smoke(name).supports.precision]
    if "trained" in metafunc.fixturenames:
        metafunc.parametrize("trained", names, indirect=True, scope="module")
    elif "task_name" in metafunc.fixturenames:
        metafunc.parametrize("task_name", names)


def smoke(task: str, results_dir: Path | None = None, *overrides: str) -> Config:
    """The configuration of a smoke run."""
    words = [f"task={task}", "scale=smoke", f"results_dir={results_dir or 'results'}", "device=cpu"]
    return configuration([*words, "log_every=2", *overrides])


def build(config: Config) -> Any:
    """The task of a configuration, on the CPU."""
    return build_task(config, CPU, Progress("test", config.steps, quiet=True))


def final_state(config: Config) -> dict[str, Any]:
    """What the last checkpoint of a run holds, without the seconds that it took and what computed it."""
    latest = checkpoint.load_latest(RunDirectory(config.directory()).checkpoints, pytest.fail)
    assert latest is not None
    return {name: value for name, value in latest[1].items() if name not in ("seconds", "numerics")}


def history(config: Config) -> list[dict[str, Any]]:
    """The lines of a run's history, without the seconds that it took."""
    file = RunDirectory(config.directory()).history
    return [{key: value for key, value in line.items() if key != "wall"} for line in lines(file)]


def losses(config: Config) -> list[float]:
    """The logged losses of a run."""
    return [line["loss"] for line in history(config) if "loss" in line]


def assert_same(a: object, b: object, at: str = "") -> None:
    """Bit for bit, tensors in nested dicts, lists and tuples."""
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor), at
        assert torch.equal(a, b), at
    elif isinstance(a, dict):
        assert isinstance(b, dict), at
        assert a.keys() == b.keys(), at
        for key in a:
            assert_same(a[key], b[key], f"{at}.{key}")
    elif isinstance(a, list | tuple):
        assert isinstance(b, list | tuple), at
        assert len(a) == len(b), at
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{at}[{i}]")
    else:
        assert a == b, at


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Send this process SIGTERM in the middle of a step, as a scheduler would."""
    inner = Trainer.__init__

    def init(self: Trainer, *args: Any, **kwargs: Any) -> None:
        inner(self, *args, **kwargs)
        train_step = self.task.train_step

        def signalled(batch: Any, step: int) -> Any:
            if step == steps - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return train_step(batch, step)

        self.task.train_step = signalled  # type: ignore[method-assign]

    monkeypatch.setattr(Trainer, "__init__", init)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, Result]:
    """A smoke run that was never stopped, with a measurement along the way."""
    config = smoke(request.param, tmp_path_factory.mktemp(request.param), "evaluate.every=4")
    return config, run(config)


# -- the configuration ------------------------------------------------------------------------------------------


def test_the_yaml_sets_exactly_the_options(task_name: str) -> None:
    data = yaml.safe_load(plugins.get("conf/task", task_name, task_name).path.read_text())
    assert set(data["task"]) == set(tasks.load(task_name).Options.model_fields)
    assert data["task"]["name"] == task_name


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_is_a_valid_configuration(task_name: str, scale: str) -> None:
    config = configuration([f"task={task_name}", f"scale={scale}"])
    checked(tasks.load(task_name).Options, config.task, at="task")


def test_every_metric_has_a_direction(task_name: str) -> None:
    metrics = tasks.load(task_name).Task.metrics
    assert metrics
    assert all(isinstance(direction, Direction) for direction in metrics.values())


# -- a run ------------------------------------------------------------------------------------------------------


def test_a_run_measures_every_average(trained: tuple[Config, Result]) -> None:
    config, result = trained
    assert result.status == "finished"
    assert [row.average for row in result.rows] == [RAW, *config.profiles()]
    assert set(result.metrics) >= set(result.measured_with)
    for row in result.rows:
        assert row.metrics.keys() == result.metrics.keys()
        assert all(value is not None and math.isfinite(value) for value in row.metrics.values()), row
    assert all(math.isfinite(value) for value in result.references.values())
    directory = RunDirectory(config.directory())
    assert directory.result() == result
    json.loads(
        directory.result_file.read_text(), parse_constant=lambda it: pytest.fail(f"{it} in result.json")
    )
    measured = [line["step"] for line in history(config) if "eval" in line]
    assert measured == [*range(4, config.steps, 4), config.steps]
    assert [line["step"] for line in history(config) if "loss" in line] == [*range(2, config.steps + 1, 2)]


def test_a_finished_run_is_not_run_again(
    trained: tuple[Config, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, result = trained
    monkeypatch.setattr(Trainer, "__init__", lambda *_: pytest.fail("trained again"))
    assert run(config) == result


def test_stopped_and_resumed_is_bit_identical(
    trained: tuple[Config, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, result = trained
    again = config.model_copy(update={"results_dir": str(tmp_path)})
    for step in (3, 4):  # after step 4 the weights are measured
        with monkeypatch.context() as patched:
            stop_after(patched, step)
            with pytest.raises(Interrupted, match=f"stopped at step {step}"):
                run(again)
        assert final_state(again)  # a checkpoint that is read: the next one resumes from it
    assert run(again).rows == result.rows
    assert_same(final_state(again), final_state(config))
    assert history(again) == history(config)


def test_the_seed_decides(trained: tuple[Config, Result], tmp_path: Path) -> None:
    config, result = trained
    other = config.model_copy(update={"results_dir": str(tmp_path), "seed": 1})
    assert run(other).rows != result.rows


def test_no_average_is_needed(trained: tuple[Config, Result], tmp_path: Path) -> None:
    """`ema.decay=null`: training and the raw weights are the same. A target network is no such average."""
    config, result = trained
    if config.ema.active:
        assert result.row(RAW)
        return
    plain = smoke(
        config.task_name, tmp_path, "ema.decay=null", *(f"~averages.{name}" for name in config.averages)
    )
    without = run(plain)
    assert [row.average for row in without.rows] == [RAW]
    main = next(iter(result.metrics))
    assert without.rows[0].metrics[main] == result.rows[0].metrics[main]


# -- the contract -----------------------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_seed_and_step(task_name: str, tmp_path: Path) -> None:
    one, two = (build(smoke(task_name, tmp_path)) for _ in range(2))
    for step in (0, 1, 2):
        one.batch(step)
    assert_same(_plain(one.batch(1)), _plain(two.batch(1)))


def test_evaluation_does_not_depend_on_batch_size(task_name: str, tmp_path: Path) -> None:
    """Neither its random draws, nor its values, up to the order of additions; after the same first weights."""
    sizes = (None, _other_batch_size(smoke(task_name, tmp_path)))
    values: list[dict[str, Any]] = []
    for size in sizes:
        words = [] if size is None else [f"batch_size={size}"]
        trainer = _untrained(smoke(task_name, tmp_path, *words))
        with trainer.evaluator.in_place(RAW):
            values.append({**trainer.task.evaluate(), **_protocols(trainer)})
    assert values[0].keys() == values[1].keys()
    for name, value in values[0].items():
        expected = value if isinstance(value, str) else pytest.approx(value, rel=1e-4, abs=1e-6)
        assert values[1][name] == expected, name


def test_evaluation_leaves_training_alone_and_repeats_itself(task_name: str, tmp_path: Path) -> None:
    trainer = _untrained(smoke(task_name, tmp_path))
    before = checkpoint.copy_to_cpu(trainer.task.state_dict(), {})
    values = []
    for _ in range(2):
        with trainer.evaluator.in_place(RAW):
            values.append(trainer.task.evaluate())
    assert values[0] == values[1]
    assert set(values[0]) <= set(trainer.task.metrics)
    assert next(iter(trainer.task.metrics)) in values[0]
    assert_same(trainer.task.state_dict(), before)


def test_trains_in_bf16(task_name: str, tmp_path: Path) -> None:
    """Near the run in float32, for bf16 keeps 8 bits. Another memory layout changes the order of additions."""
    plain = smoke(task_name, tmp_path, "steps=6")
    fast = smoke(task_name, tmp_path, "steps=6", "precision=bf16", "channels_last=true")
    assert run(plain).status == run(fast).status == "finished"
    assert losses(fast) == pytest.approx(losses(plain), rel=0.05)
    assert losses(fast) != losses(plain)


def test_exports_its_weights(task_name: str, tmp_path: Path) -> None:
    build(smoke(task_name, tmp_path)).export(tmp_path)
    assert any(tmp_path.iterdir())


def _untrained(config: Config) -> Trainer:
    return Trainer(config, RunDirectory(config.directory()), StopRequest())


def _protocols(trainer: Trainer) -> dict[str, str]:
    return {f"protocol of {name}": text for name, text in trainer.task.measured_with.items()}


def _other_batch_size(config: Config) -> int:
    """Half of the batch: whatever divides by the batch size divides by its half too."""
    return max(1, config.batch_size // 2)


def _plain(batch: Any) -> Any:
    return vars(batch) if hasattr(batch, "__dataclass_fields__") else batch
