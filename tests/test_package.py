"""emabench works from a wheel, in any directory, with what users have in a folder or in a distribution of theirs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "lab-averages"
version = "1.2"
dependencies = ["emabench"]

[project.entry-points."emabench.path"]
lab = "lab_averages"
"""

pytestmark = pytest.mark.slow  # builds the wheel and environments for it


def build(project: Path, to: Path) -> Path:
    """The wheel of a project."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(to)]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    (wheel,) = to.glob("*.whl")
    return wheel


class Environment:
    """A virtual environment of its own; the libraries that emabench needs are those of this process."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.bin = folder / "bin"
        (self.site,) = folder.glob("lib/python*/site-packages")
        # A path in a .pth file: the .pth files in there, of an editable installation, are not read.
        (self.site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def install(self, wheel: Path) -> None:
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", "--force-reinstall", str(wheel)], check=True, capture_output=True)

    def emabench(self, cwd: Path, *words: str) -> str:
        """What a command prints."""
        settings = {
            key: value for key, value in os.environ.items() if not key.startswith(("EMABENCH_", "PYTHON"))
        }
        done = subprocess.run(
            [self.bin / "emabench", *words], cwd=cwd, env=settings, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """emabench installed from its wheel."""
    folder = tmp_path_factory.mktemp("environment")
    installed = Environment(folder / "venv")
    installed.install(build(ROOT, folder / "wheel"))
    return installed


def test_the_wheel_carries_its_configuration(environment: Environment, tmp_path: Path) -> None:
    assert (environment.site / "emabench" / "conf" / "config.yaml").is_file()
    assert (environment.site / "emabench" / "py.typed").is_file()
    listed = environment.emabench(tmp_path, "list")
    assert "ddpm" in listed
    assert "imagenet_resnet50" in listed


def test_the_wheel_trains_in_any_directory(environment: Environment, tmp_path: Path) -> None:
    printed = environment.emabench(tmp_path, "task=quadratic", "scale=smoke", "ema.decay=[0.9,0.99]")
    assert "ema_0.99" in printed
    assert list((tmp_path / "results" / "quadratic").glob("*/result.json"))


def write(environment: Environment, folder: Path, name: str) -> None:
    """A task, an average, a sweep and a table, called after `name`: a start of each as it is written."""
    folder.parent.mkdir(exist_ok=True)
    for kind in ("task", "average", "sweep", "table"):
        environment.emabench(folder.parent, "new", kind, f"{name}_{kind}", "--path", str(folder))


def swept(environment: Environment, cwd: Path, name: str, *at: str) -> list[dict]:
    """The results of the sweep, of the task with the average."""
    words = (f"sweep={name}_sweep", f"task={name}_task", f"+averages.mine={{kind: {name}_average}}")
    environment.emabench(cwd, "-m", *words, "scale=smoke", "jobs=1", *at)
    return [json.loads(path.read_text()) for path in sorted(cwd.glob(f"results/{name}_task/*/result.json"))]


def test_a_folder_of_the_users_own(environment: Environment, tmp_path: Path) -> None:
    write(environment, tmp_path / "mine", "own")
    results = swept(environment, tmp_path, "own", "--path", "mine")
    assert len(results) == 2
    for result in results:
        assert "mine" in [row["average"] for row in result["rows"]]
        origin = result["environment"]["plugins"]["tasks/own_task"]
        assert origin.startswith(str(tmp_path / "mine" / "tasks" / "own_task.py"))
    # Resumption, precision, its contract: the suite that the package's own tasks pass.
    assert " passed" in environment.emabench(tmp_path, "test", "task", "own_task", "--path", "mine")
    words = ("table", "own_table", "scale=smoke", "seeds=1", "jobs=1")
    assert "own_table-smoke.html" in environment.emabench(tmp_path, "--path", "mine", *words)


def test_a_distribution_of_the_users_own(environment: Environment, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text(PROJECT)
    write(environment, project / "lab_averages", "lab")
    package = project / "lab_averages" / "__init__.py"
    package.write_text("raise RuntimeError('listing imports nothing')\n")
    environment.install(build(project, tmp_path / "first"))
    listed = environment.emabench(tmp_path, "list")
    for name in ("lab_task", "lab_table", "lab_sweep", "lab_average", "lab-averages 1.2"):
        assert name in listed
    package.write_text("")
    environment.install(build(project, tmp_path / "second"))
    assert "own seed 100" in environment.emabench(tmp_path, "table", "lab_table", "--dry-run")
    results = swept(environment, tmp_path, "lab")
    assert len(results) == 2
    assert "lab-averages 1.2" in results[0]["environment"]["plugins"]["tasks/lab_task"]
