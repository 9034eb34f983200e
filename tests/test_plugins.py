"""What users have outside the package: it is found where they say so, used like the package's own, and breaks nothing."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from emabench import cli, plugins, tasks
from emabench.compose import configuration
from emabench.errors import UserError
from emabench.launch import slurm
from emabench.paths import PACKAGE, conf_dir

AVERAGE = '''"""The latest weights, written as a user would write a kind of average."""

from dataclasses import dataclass

from emabench.averaging.profiles import Profile


@dataclass(frozen=True)
class Latest(Profile, kind="latest"):
    def advance(self, k, *rest):
        return 1.0, float("-inf")
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a user's own: a task (the quadratic under another name), a table and a kind of average."""
    folder = tmp_path / "my own=folder #1"
    for kind in ("tasks", "averages", "conf/task", "conf/table"):
        (folder / kind).mkdir(parents=True)
    for source, to in (
        (PACKAGE / "tasks" / "quadratic.py", "tasks/bowl.py"),
        (conf_dir() / "task" / "quadratic.yaml", "conf/task/bowl.yaml"),
        (conf_dir() / "table" / "variance_law.yaml", "conf/table/bowl_law.yaml"),
    ):
        text = source.read_text(encoding="utf-8").replace("quadratic", "bowl")
        (folder / to).write_text(text, encoding="utf-8")
    (folder / "averages" / "latest.py").write_text(AVERAGE)
    return folder


def run(*words: str) -> int:
    return cli.main([*words])


def results(results_dir: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(results_dir.glob("*/*/result.json"))]


def test_what_is_in_a_folder_is_listed_and_trained(folder: Path, tmp_path: Path, capfd) -> None:
    assert run("--path", str(folder), "list") == 0
    listed = capfd.readouterr().out
    assert "bowl" in listed and "bowl_law" in listed and "latest" in listed
    assert "{'" not in listed and "DDPM on CIFAR-10 (§16.1)" in listed
    out = f"results_dir={tmp_path / 'results'}"
    average = "+averages.last={kind: latest}"
    assert run("task=bowl", "scale=smoke", f"--path={folder}", average, out) == 0
    (result,) = results(tmp_path / "results")
    values = {row["average"]: row["metrics"]["distance"] for row in result["rows"]}
    assert values["last"] == pytest.approx(values["raw"])
    assert values["last"] != pytest.approx(values["ema_0.999"])
    origins = result["environment"]["plugins"]
    assert set(origins) == {"tasks/bowl", "averages/latest"}
    assert origins["tasks/bowl"].startswith(str(folder / "tasks" / "bowl.py"))
    assert "EMABENCH_PATH" not in os.environ


def test_a_table_of_a_folder_is_run_and_judged_by_processes_of_their_own(
    folder: Path, tmp_path: Path, capfd
) -> None:
    words = ["table", "bowl_law", "scale=smoke", "seeds=2", "jobs=2", f"results_dir={tmp_path / 'results'}"]
    assert run(*words, "--path", str(folder)) == 0
    assert [result["task"] for result in results(tmp_path / "results")] == ["bowl", "bowl"]
    assert "page" in capfd.readouterr().out


def test_runs_outlast_the_folder_that_their_task_was_in(folder: Path, tmp_path: Path, capfd) -> None:
    out = f"results_dir={tmp_path / 'results'}"
    assert run("task=bowl", "scale=smoke", "--path", str(folder), out) == 0
    (directory,) = (tmp_path / "results" / "bowl").iterdir()
    capfd.readouterr()
    assert run("report", out) == 0
    assert "bowl" in (tmp_path / "results" / "report" / "index.html").read_text()
    assert run("compare", str(directory)) == 0
    assert run("evaluate", str(directory)) == 2
    message = capfd.readouterr().err
    assert str(folder) in message and "--path" in message and "Traceback" not in message
    assert run("evaluate", str(directory), "--path", str(folder)) == 0


def test_a_broken_file_is_named_and_everything_else_works(folder: Path, tmp_path: Path, capfd) -> None:
    (folder / "tasks" / "half.py").write_text("import torch\n\nclass Task(:\n")
    (folder / "conf" / "task" / "half.yaml").write_text("task: {name: half}\nsteps: 1\nbatch_size: 1\n")
    (folder / "conf" / "task" / "torn.yaml").write_text("task:\n  name: [torn\n")
    (folder / "conf" / "table" / "torn.yaml").write_text("title: torn\nrows: [\n")
    (folder / "tasks" / "raises.py").write_text("x = 1\ny = x / 0\n")
    (folder / "conf" / "task" / "raises.yaml").write_text("task: {name: raises}\nsteps: 1\nbatch_size: 1\n")
    out = f"results_dir={tmp_path / 'results'}"
    assert run("list", "--path", str(folder)) == 0
    listed = capfd.readouterr()
    for name, line in (("tasks/half.py", 3), ("conf/task/torn.yaml", 3), ("conf/table/torn.yaml", 3)):
        assert f"left out: {folder / name}:{line}: " in listed.err
    assert "bowl" in listed.out and "half" not in listed.out
    assert run("task=bowl", "scale=smoke", "--path", str(folder), out) == 0
    assert run("report", "--path", str(folder), out) == 0
    capfd.readouterr()
    for name, where in (
        ("half", "tasks/half.py:3"),
        ("raises", "tasks/raises.py:2"),
        ("torn", "torn.yaml:3"),
    ):
        assert run(f"task={name}", "scale=smoke", "--path", str(folder), out) == 2
        message = capfd.readouterr().err
        assert where in message and "Traceback" not in message


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("conf/task", "quadratic", ["task=quadratic", "scale=smoke"]),
        ("conf/table", "variance_law", ["table", "variance_law", "scale=smoke"]),
    ],
)
def test_a_name_that_is_taken_is_an_error_that_names_both(
    folder: Path, tmp_path: Path, capfd, kind: str, name: str, words: list[str]
) -> None:
    (folder / kind / f"{name}.yaml").write_text("title: mine\n")
    assert run(*words, "--path", str(folder), f"results_dir={tmp_path / 'results'}") == 2
    message = capfd.readouterr().err
    assert str(folder / kind / f"{name}.yaml") in message and str(conf_dir()) in message
    assert not (tmp_path / "results").exists()


def test_a_kind_of_average_that_is_taken_is_an_error(folder: Path, capfd) -> None:
    (folder / "averages" / "mean.py").write_text(AVERAGE.replace("latest", "mean"))
    words = ["--cfg", "task=quadratic", "+averages.x={kind: mean}", "--path", str(folder)]
    assert run(*words) == 2
    assert "averages/mean.py" in capfd.readouterr().err


def test_the_working_directory_is_not_searched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv(plugins.VARIABLE, os.pathsep)  # two empty entries, which for PATH would mean "here"
    assert plugins.folders() == []
    with pytest.raises(UserError, match=r"there is no task 'bowl'.*--path"):
        configuration(["task=bowl"])


def test_relative_folders_are_seen_by_processes_in_other_directories(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv(plugins.VARIABLE, folder.name)
    with plugins.using([]):
        assert os.environ[plugins.VARIABLE] == str(folder)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["test", "task"], "emabench test task NAME"),
        (["test", "task", "quadratc"], "did you mean 'quadratic'"),
        (["list", "--path"], "give a folder"),
        (["list", "--path", "nowhere"], "is not a folder"),
        (["list", "--path", "."], "has none of conf/task"),
    ],
)
def test_mistakes_in_the_option_are_named(
    words: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    assert run(*words) == 2
    assert part in capfd.readouterr().err


def test_what_a_folder_defines_can_be_pickled_for_another_process(folder: Path) -> None:
    """As processes that load data, or train together, receive it."""
    (folder / "tasks" / "light.py").write_text("class Options: ...\nclass Task: ...\n")  # imports no torch
    with plugins.using([folder]):
        data = pickle.dumps(tasks.load("light").Options)
        program = "import pickle, sys; print(pickle.load(sys.stdin.buffer).__name__)"
        done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True)
    assert done.stdout.strip() == b"Options", done.stderr.decode()


def test_two_folders_do_not_mix(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "tasks").mkdir(parents=True)
    (other / "tasks" / "_helper.py").write_text("VALUE = 'other'\n")
    (other / "tasks" / "second.py").write_text(
        "from ._helper import VALUE\nclass Options: ...\nclass Task: ...\n"
    )
    (folder / "tasks" / "_helper.py").write_text("VALUE = 'mine'\n")
    (folder / "tasks" / "first.py").write_text(
        "from ._helper import VALUE\nclass Options: ...\nclass Task: ...\n"
    )
    with plugins.using([folder, other]):
        assert (tasks.load("first").VALUE, tasks.load("second").VALUE) == ("mine", "other")
        assert "_helper" not in plugins.find("tasks")


def test_a_type_of_claim_of_a_folder_is_judged(folder: Path, tmp_path: Path, capfd) -> None:
    (folder / "claims").mkdir()
    (folder / "claims" / "clearly_better.py").write_text(
        "from typing import Literal\n"
        "from emabench.tables.claims.difference import Difference\n\n\n"
        "class ClearlyBetter(Difference):\n"
        '    type: Literal["clearly_better"]\n'
    )
    (folder / "claims" / "torn.py").write_text("import nothing_of_that_name\n")
    table = folder / "conf" / "table" / "bowl_law.yaml"
    claim = "  - {type: clearly_better, text: mine, metric: excess_loss, row: b9, over: raw, margin: 1%, article: better}"
    table.write_text(table.read_text().replace("claims:\n", f"claims:\n{claim}\n"))
    words = ["table", "bowl_law", "scale=smoke", "seeds=2", "jobs=1", f"results_dir={tmp_path / 'results'}"]
    assert run(*words, "--path", str(folder)) == 0
    assert "left out" in capfd.readouterr().err
    page = (tmp_path / "results" / "report" / "bowl_law-smoke.html").read_text()
    assert "mine" in page
    assert run("table", "variance_law", "--dry-run") == 0


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("size", "better = 'up'\ndef measure(task): return 1.0\n", "size.py: better"),
        ("size", "better = 'lower'\n", "size.py: defines no function measure"),
        ("size", "better = lower\n", "size.py:1: NameError"),
        ("distance", "better = 'lower'\ndef measure(task): return 1.0\n", "measures distance already"),
        ("other", "", "there is no metric 'size'"),
    ],
)
def test_a_metric_that_cannot_be_used_is_named_before_training(
    folder: Path, tmp_path: Path, capfd, name: str, text: str, part: str
) -> None:
    (folder / "metrics").mkdir()
    (folder / "metrics" / f"{name}.py").write_text(text)
    asked = "size" if name == "other" else name
    words = ["task=quadratic", "scale=smoke", f"metrics=[{asked}]", f"results_dir={tmp_path / 'results'}"]
    for several in ([], ["-m"]):
        assert run(*several, *words, "--path", str(folder)) == 2
        message = capfd.readouterr().err
        assert part in message and "Traceback" not in message
    assert not list(tmp_path.glob("results/*/*/history.jsonl"))


def test_a_job_on_a_cluster_finds_the_same_folders(folder: Path, tmp_path: Path) -> None:
    """Whatever environment it is started in, and started again in."""
    with plugins.using([folder]):
        config = configuration(["task=bowl", "scale=smoke", f"results_dir={tmp_path / 'results'}"])
        job = pickle.dumps(slurm.Job([config], jobs=1))
    with pytest.raises(UserError, match="there is no task 'bowl'"):
        configuration(["task=bowl"])
    pickle.loads(job)()
    assert results(tmp_path / "results")[0]["status"] == "finished"


def test_commands_to_copy_name_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.setattr(slurm, "submit", lambda *_: [slurm.Submitted("job", 0)])
    assert run("--path", str(folder), "-m", "task=bowl", "scale=smoke", "launcher=slurm") == 0
    status = next(line for line in capfd.readouterr().out.splitlines() if "--status" in line)
    words = shlex.split(status)[1:]
    assert words.pop() == "--status"
    assert plugins.split(words) == (["-m", "task=bowl", "scale=smoke", "launcher=slurm"], [folder])


def test_a_folder_of_the_variable_that_is_gone_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path / "gone"))
    assert run("list") == 0
    printed = capfd.readouterr()
    assert f"left out: EMABENCH_PATH: {tmp_path / 'gone'}" in printed.err
    assert "ddpm" in printed.out
