"""SIGKILL at random moments, a dozen times over, then the same command again: the same result as undisturbed.

`scripts/kills` does it to every task, as often as asked for.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from emabench import plugins
from emabench.config import Config
from emabench.runs.directory import RunDirectory
from emabench.runs.history import lines
from emabench.testing.suite import assert_same, final_state, history, smoke

KILLS = int(os.environ.get("EMABENCH_KILLS", "12"))
FAST = (f"steps={330 * KILLS}", "checkpoint.every=50", "evaluate.every=200", "log_every=10")
SLOW = (f"steps={5 * KILLS}", "checkpoint.every=7", "evaluate.every=20")
CASES = dict.fromkeys(sorted(plugins.find("conf/task")), SLOW) | {
    "quadratic": FAST,
    "td3": (f"steps={20 * KILLS}", "checkpoint.every=7", "evaluate.every=40"),
}
ASKED = os.environ.get("EMABENCH_KILL_TASKS", "quadratic,ddpm")
TASKS = list(CASES) if ASKED == "all" else ASKED.split(",")


def train(config: Config) -> None:
    """What a process does that is to be killed: everything the command does after reading its words."""
    import torch

    from emabench.training.start import run

    torch.set_num_threads(1)
    run(config)


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that start with torch imported: the kills are to hit training, not imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["emabench.training.start", "emabench.tasks.ddpm", __name__])
    return context


def kill_imports(config: Config, overrides: Sequence[str], draw: random.Random) -> None:
    """Start the command itself and kill it within its first second, while it imports."""
    task = f"task={config.task_name}"
    words = [
        task,
        "scale=smoke",
        f"results_dir={config.results_dir}",
        "device=cpu",
        "log_every=2",
        *overrides,
    ]
    command = [sys.executable, "-P", "-m", "emabench", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(draw.uniform(0, 1))
        assert process.poll() is None, process.stderr and process.stderr.read()
        process.kill()


def wait_for(process: BaseProcess, directory: RunDirectory, step: int) -> None:
    """Return once the run has a line in its history of this step or a later one."""
    while process.is_alive():
        if directory.history.exists() and any(line["step"] >= step for line in lines(directory.history)):
            return
        time.sleep(0.005)


@pytest.mark.parametrize("task", TASKS)
def test_killed_and_resumed_is_the_same_run(processes: ForkServerContext, tmp_path: Path, task: str) -> None:
    undisturbed = smoke(task, tmp_path / "undisturbed", *CASES[task])
    train(undisturbed)
    expected = RunDirectory(undisturbed.directory()).result()
    assert expected

    config = undisturbed.model_copy(update={"results_dir": str(tmp_path / "killed")})
    directory = RunDirectory(config.directory())
    draw = random.Random(0)
    for kill in range(KILLS):
        if kill % 6 == 5:
            kill_imports(config, CASES[task], draw)
            continue
        process = processes.Process(target=train, args=(config,))
        process.start()
        if kill % 4 == 0:  # while it starts: reads its checkpoint, rewrites its history
            process.join(draw.uniform(0, 0.5))
        else:  # anywhere in training, in a checkpoint, in an evaluation
            wait_for(process, directory, step=config.steps * kill // (KILLS + 2))
            process.join(draw.uniform(0, 0.05))
        assert process.is_alive(), "it was to be killed before its end"
        process.kill()
        process.join()
    assert directory.result() is None
    train(config)
    result = directory.result()
    assert result
    assert result.rows == expected.rows
    assert history(config) == history(undisturbed)
    assert_same(final_state(config), final_state(undisturbed))
