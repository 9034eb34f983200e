"""SIGKILL at any moment, ten times and more over, then the same command again: the same result as undisturbed."""

from __future__ import annotations

import multiprocessing
import random
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from emabench.config import Config
from emabench.runs.directory import RunDirectory
from tests.training.test_run import assert_same, final_state, smoke

CASES = {
    "quadratic": ("steps=4000", "checkpoint.every=50", "evaluate.every=200", "log_every=10"),
    "ddpm": ("steps=60", "checkpoint.every=7", "evaluate.every=20"),
}


def train(config: Config) -> None:
    """What a process does that is to be killed: everything the command does after reading its words."""
    import torch

    from emabench.training.run import run

    torch.set_num_threads(1)
    run(config)


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that start with torch imported: the kills are to hit training, not imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["emabench.training.run", "emabench.tasks.ddpm", __name__])
    return context


@pytest.mark.parametrize("task", CASES)
def test_killed_and_resumed_is_the_same_run(processes: ForkServerContext, tmp_path: Path, task: str) -> None:
    undisturbed = smoke(task, tmp_path / "undisturbed", *CASES[task])
    train(undisturbed)
    expected = RunDirectory(undisturbed.directory()).result()
    assert expected

    config = undisturbed.model_copy(update={"results_dir": str(tmp_path / "killed")})
    directory = RunDirectory(config.directory())
    draw = random.Random(0)
    kills, patience = 0, 0.6
    while directory.result() is None:
        assert kills < 100, "no progress between kills"
        process = processes.Process(target=train, args=(config,))
        process.start()
        # Ten kills at least; then each life is longer, so that the run does come to its end.
        process.join(draw.uniform(0.05, patience) if kills < 12 else patience * 2 ** (kills - 11))
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
    assert kills >= 10
    result = directory.result()
    assert result
    assert result.rows == expected.rows
    assert_same(final_state(config), final_state(undisturbed))
