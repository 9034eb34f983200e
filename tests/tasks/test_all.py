"""What holds for every task there is, found as the command finds them: by their YAML."""

from __future__ import annotations

import ast

import pytest
import yaml

from emabench import tasks
from emabench.compose import configuration
from emabench.config import SCALES, checked
from emabench.paths import PACKAGE, conf_dir
from emabench.tasks.base import Direction

TASKS = sorted(path.stem for path in (conf_dir() / "task").glob("*.yaml"))


@pytest.mark.parametrize("name", TASKS)
def test_the_yaml_sets_exactly_the_options(name: str) -> None:
    data = yaml.safe_load((conf_dir() / "task" / f"{name}.yaml").read_text())
    assert set(data["task"]) == set(tasks.load(name).Options.model_fields)
    assert data["task"]["name"] == name


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", TASKS)
def test_every_scale_is_a_sound_configuration(name: str, scale: str) -> None:
    config = configuration([f"task={name}", f"scale={scale}"])
    checked(tasks.load(name).Options, config.task, at="task")


@pytest.mark.parametrize("name", TASKS)
def test_metrics_say_which_way_is_better(name: str) -> None:
    metrics = tasks.load(name).Task.metrics
    assert metrics
    assert all(isinstance(direction, Direction) for direction in metrics.values())


def test_no_task_imports_another() -> None:
    folder = PACKAGE / "tasks"
    for path in sorted(folder.rglob("*.py")):
        own = f"emabench.tasks.{path.relative_to(folder).parts[0].removesuffix('.py')}"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("emabench.tasks"):
                names = {alias.name for alias in node.names}
                allowed = (
                    node.module == "emabench.tasks.base" or names == {"base"} or node.module.startswith(own)
                )
                assert allowed, f"{path}: {node.module} {names}"
