"""What a command imports: start-up is most of a short command's time, so each loads only what it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from emabench.launch.plan import has_gpu_driver

RUN = """
import json, sys
from emabench.cli import main
print(json.dumps([main(words) for words in json.loads(sys.argv[1])]))
print(json.dumps(sorted(sys.modules)))
"""


def imported(cwd: Path, *commands: list[str]) -> tuple[list[int], set[str]]:
    """The exit statuses of these commands, run in one new process, and the modules that it has loaded at its end."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands)], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    statuses, modules = done.stdout.splitlines()[-2:]
    return json.loads(statuses), set(json.loads(modules))


@pytest.mark.parametrize("task", ["quadratic", "classification", "moco"])
def test_training_loads_no_library_it_does_not_use(task: str, tmp_path: Path) -> None:
    """torch._dynamo, torchvision and sklearn take longer to import than torch itself."""
    statuses, modules = imported(tmp_path, [f"task={task}", "scale=smoke", "device=cpu"])
    assert statuses == [0]
    assert "torch" in modules
    heavy = {"torch._dynamo", "torchvision", "torchmetrics", "transformers", "diffusers", "sklearn", "pandas"}
    assert not modules & {*heavy, "scipy.stats", "scipy.special", "wandb", "matplotlib"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    assert imported(folder, ["task=quadratic", "scale=smoke", "device=cpu"])[0] == [0]
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ["task=quadratic", "scale=smoke", "device=cpu"],
        ["table", "variance_law", "scale=smoke", "--status"],
        ["-m", "task=quadratic", "scale=smoke", "seed=0,1", "--dry-run"],
        ["list"],
    ],
)
def test_looking_at_what_is_there_needs_neither_torch_nor_numpy(words: list[str], finished: Path) -> None:
    statuses, modules = imported(finished, words)
    assert statuses == [0]
    assert not modules & {"torch", "numpy", "scipy", "submitit", "wandb", "sklearn"}


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["export", "--help"],
        ["trian"],
        ["--frobnicate"],
        ["task=quadrtic"],
        ["ema.dcay=0.9"],
        ["learning_rate=3", "seed=0"],
        ["word", "task=ddpm"],
        ["table"],
        ["table", "no_such"],
    ],
)
def test_words_are_answered_without_the_libraries_that_read_them(words: list[str], tmp_path: Path) -> None:
    statuses, modules = imported(tmp_path, words)
    assert statuses == [0 if words[-1] == "--help" else 2]
    assert not modules & {"hydra", "omegaconf", "pydantic", "rich", "numpy", "torch"}


@pytest.mark.parametrize(
    "words",
    [
        ["task=ddpm", "devices=2", "batch_size=3"],
        ["task=quadratic", "devices=2"],
        ["task=quadratic", "scale=smoke", "device=cuda"],
        ["task=quadratic", "precision=fp16"],
        ["task=moco", "task.queue=large"],
    ],
)
def test_what_the_configuration_alone_shows_is_known_before_torch_is_imported(
    words: list[str], tmp_path: Path
) -> None:
    if "device=cuda" in words and has_gpu_driver():
        pytest.skip("this machine has a GPU driver")
    statuses, modules = imported(tmp_path, words)
    assert statuses == [2]
    assert "torch" not in modules
