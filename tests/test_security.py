"""Files of strangers: they run no code, hang nothing, fill no memory and write nothing to a terminal but text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from emabench.cli import main
from emabench.errors import DONE, FAILED, MISTAKE
from emabench.masking import masked
from emabench.runs import files, result
from emabench.runs.directory import run_directories
from emabench.runs.result import DamagedResult, read_result
from emabench.tables import gather
from tests.test_config import config

RUN = ["task=quadratic", "scale=smoke", "device=cpu"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results directory with one finished run."""
    folder = tmp_path_factory.mktemp("security") / "results"
    assert main([*RUN, f"results_dir={folder}"]) == DONE
    return folder


@pytest.fixture
def results(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be tampered with."""
    subprocess.run(["cp", "-a", str(finished), str(tmp_path / "results")], check=True)
    return tmp_path / "results"


def the_run(results: Path) -> Path:
    return next((results / "quadratic").iterdir())


def fifo(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def folder(path: Path) -> None:
    path.mkdir()


def gigabyte(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10**9)  # sparse


def bomb(path: Path) -> None:
    lines = ['a0: &a0 ["x", "x", "x", "x", "x", "x", "x", "x", "x"]']
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    path.write_text("\n".join(lines))


@pytest.mark.parametrize("name", ["result.json", "config.yaml", "history.jsonl"])
@pytest.mark.parametrize("make", [fifo, endless, loop, folder, gigabyte, bomb])
def test_no_file_of_a_run_hangs_or_fills_memory(
    make: Callable[[Path], None], name: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command answers, and a report is made of what can be read."""
    run = the_run(results)
    (run / name).unlink()
    make(run / name)
    capsys.readouterr()
    assert main(["report", f"results_dir={results}"]) == DONE
    assert main(["compare", str(run)]) in (DONE, FAILED, MISTAKE)
    assert main(
        ["table", "variance_law", "scale=smoke", "seeds=1", f"results_dir={results}", "--status"]
    ) in (
        DONE,
        FAILED,
    )
    if name == "result.json":
        with pytest.raises((DamagedResult, FileNotFoundError), match=str(run / name)):
            read_result(run / name)
    assert "Traceback" not in capsys.readouterr().err


def test_a_file_that_is_too_large_says_how_large_it_may_be(tmp_path: Path) -> None:
    gigabyte(tmp_path / "result.json")
    with pytest.raises(DamagedResult, match=r"1000\.0 MB, more than the 100\.0 MB"):
        read_result(tmp_path / "result.json")


def test_links_in_circles_end(tmp_path: Path) -> None:
    (tmp_path / "quadratic").symlink_to(tmp_path)
    (tmp_path / "x").symlink_to("y")
    (tmp_path / "y").symlink_to("x")
    assert run_directories(tmp_path) == []


def test_yaml_of_ours_still_reads(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("x: '*not an alias'\ny: 2 * 3\n")
    assert files.read_yaml(tmp_path / "a.yaml") == {"x": "*not an alias", "y": "2 * 3"}


def test_a_foreign_result_writes_text_alone_to_the_terminal(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither control characters nor rich's markup: the names, reasons and notes are shown as they are."""
    file = the_run(results) / "result.json"
    found = json.loads(file.read_text())
    found["measured_with"] = dict.fromkeys(found["metrics"], "[/x][bold]note[/] \x1b[2J\x9b1m\x07")
    found["references"] = {"[red]floor\x1b]0;title\x07": 1.0}
    found["rows"][1]["average"] = "[link=http://x]ema\x1b[31m"
    for ascii_only in (True, False):
        file.write_text(json.dumps(found, ensure_ascii=ascii_only))
        for words in (
            [*RUN, f"results_dir={results}"],
            ["compare", str(file.parent)],
            ["-m", *RUN, "seed=0", f"results_dir={results}", "--collect"],
            ["table", "variance_law", "scale=smoke", "seeds=1", f"results_dir={results}", "--collect"],
            ["report", f"results_dir={results}"],
        ):
            assert main(words) == DONE, words
            shown = capsys.readouterr()
            text = (shown.out + shown.err).replace("\n", "")
            assert text.isprintable(), words
    assert main([*RUN, f"results_dir={results}"]) == DONE
    shown = capsys.readouterr().out
    assert "[/x][bold]note[/]" in shown and "[link=http://x]ema" in shown and "[red]floor" in shown


def test_a_backslash_in_a_result_is_one() -> None:
    assert result.CONTROL.sub(lambda m: m["backslash"] or "?", r"C:\\bin \\u001b \u001b \n") == (
        r"C:\\bin \\u001b ? \n"
    )


def test_nothing_is_imported_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A yaml.py in a data directory, say: not by the workers of a sweep, nor by what they start."""
    for name in ("yaml", "torch", "submitit", "wandb", "multiprocessing"):
        (tmp_path / f"{name}.py").write_text(
            f"from pathlib import Path\nPath('{tmp_path}/ran-{name}').touch()\n"
        )
    monkeypatch.chdir(tmp_path)
    words = ["-m", *RUN, "seed=0,1", "jobs=2", "results_dir=results"]
    emabench = Path(sys.executable).with_name("emabench")
    done = subprocess.run([emabench, *words], capture_output=True, text=True)
    assert done.returncode == DONE, done.stderr
    assert [path.name for path in tmp_path.glob("ran-*")] == []


def test_a_local_cluster_follows_no_link(tmp_path: Path) -> None:
    precious, link = tmp_path / "precious", tmp_path / "link"
    (precious / "controller").mkdir(parents=True)
    (precious / "slurm.conf").touch()
    link.symlink_to(precious)
    script = Path(__file__).parents[1] / "slurm" / "local-cluster"
    for given in (link, f"{link}/", f"{link}//"):
        environment = os.environ | {"EMABENCH_SLURM_DIR": str(given)}
        done = subprocess.run([script, "stop"], env=environment, capture_output=True, text=True)
        assert done.returncode == 2
        assert "symbolic link" in done.stderr
    assert (precious / "controller").exists() and (precious / "slurm.conf").exists()


@pytest.mark.parametrize("name", ["a%j", "a\nb", "a\\b", "a\x1bb", "a\tb"])
def test_a_path_that_slurm_would_not_take_as_it_is_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emabench.launch.slurm.queue", dict)
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/sbatch")
    words = ["-m", *RUN, "launcher=slurm", f"results_dir={tmp_path / name}"]
    assert main(words) == MISTAKE
    assert "SLURM takes no %" in capsys.readouterr().err
    assert not run_directories(tmp_path / name)


def test_pickles_of_jobs_are_their_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from emabench.launch import slurm

    sent = []
    monkeypatch.setattr(slurm, "queue", dict)
    monkeypatch.setattr("submitit.SlurmExecutor.affinity", lambda *_: 2)
    monkeypatch.setattr("submitit.SlurmExecutor.submit_array", lambda self, jobs: sent.append((self, jobs)))
    before = os.umask(0)
    try:
        submitted = slurm._submit("sweep", [config(f"results_dir={tmp_path}")], slurm.profile("local", {}), 1)
    finally:
        os.umask(before)
    folder = tmp_path / ".slurm" / submitted[0].name
    assert folder.stat().st_mode & 0o777 == 0o700
    ((executor, _),) = sent
    assert executor.parameters["setup"][0].startswith(f"[ -O {folder} ] || ")
    assert executor.python.endswith(" -P")
    assert "export PYTHONSAFEPATH=1" in executor.parameters["setup"]


KEYS = ["sk-abcdefghijklmnop1234", "hf_" + "a1" * 17, "ghp_" + "x" * 36, "AKIA" + "A" * 16]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_not_recorded(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", key)
    for word in (f"group={key}", "group=${oc.env:MY_API_KEY}", "group=${oc.env:MY_API_KEY,none}"):
        assert main([*RUN, word, f"results_dir={tmp_path}"]) == MISTAKE
        message = capsys.readouterr().err
        assert key not in message.replace(word, "")
        assert "environment variables" in message or "EMABENCH_" in message
    assert not run_directories(tmp_path)


def test_what_is_recorded_names_no_key_and_no_home() -> None:
    text = "emabench data_dir=/home/ann/data group=x url=https://ann:pw@host/x API_KEY=hunter2 token: t0p 'a=/root/b'"
    shown = masked(text)
    for hidden in ("/home/ann", "ann:pw", "hunter2", "t0p", "/root"):
        assert hidden not in shown
    assert (
        "data_dir=~/data" in shown and "https://host/x" in shown and "'a=~/b'" in shown and "group=x" in shown
    )
    for kept in (
        "results_dir=/data/home/ann",
        "task.model=resnet50",
        "clip.max_norm=1",
        "seed=0,1",
        "/rooted/x",
    ):
        assert masked(kept) == kept


def test_pages_name_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "results"
    assert main([*RUN, f"results_dir={folder}", "data_dir=/home/ann/data", "group=variance_law"]) == DONE
    assert "/home/ann" in (the_run(folder) / "config.yaml").read_text()  # which says where, for this machine
    assert main(["report", f"results_dir={folder}"]) == DONE
    pages = [path.read_text() for path in (folder / "report").glob("*.*")]
    assert pages and not any("/home/ann" in page for page in pages)
    assert any("~/data" in page for page in pages)
    assert "/home/ann" not in (the_run(folder) / "result.json").read_text()


def test_a_history_that_changed_after_its_run_finished_is_noticed(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the terminal and on the page; measuring the run again does not hide it, and alone changes nothing."""
    run = the_run(results)
    assert main(["evaluate", str(run)]) == DONE
    assert gather.run_at(run).irregularities == []
    whole = (run / "history.jsonl").read_bytes()
    count = whole.count(b"\n")
    for data, problem in (
        (None, "history.jsonl is missing"),
        (b"\0" * len(whole), f"history.jsonl has lost {count} of its {count} lines"),
        (whole.replace(b'"step"', b'"rtep"', 1), f"history.jsonl has lost 1 of its {count} lines"),
    ):
        (run / "history.jsonl").unlink()
        if data is not None:
            (run / "history.jsonl").write_bytes(data)
        if problem.endswith("is missing"):
            assert main(["evaluate", str(run)]) == DONE
            assert gather.run_at(run).irregularities
            (run / "history.jsonl").unlink()
        assert problem in gather.run_at(run).irregularities[0]
        capsys.readouterr()
        main([*RUN, f"results_dir={results}"])
        assert problem in " ".join(capsys.readouterr().out.split())
        (run / "history.jsonl").write_bytes(whole)


def test_a_run_names_no_module_to_import(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment given as package:Env in a stranger's config.yaml, unless the user repeats it."""
    package = tmp_path / "strangers_package.py"
    package.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    run = tmp_path / "td3" / "run"
    run.mkdir(parents=True)
    environment = "strangers_package:Pendulum-v1"
    whole = config("task=td3", "scale=smoke", "device=cpu").model_dump()
    whole["task"]["environment"] = environment
    (run / "config.yaml").write_text(yaml.safe_dump(whole))
    for words in (["evaluate"], ["export", "average=raw"], ["posthoc", "decay=0.9"], ["posthoc", "--curve"]):
        command = [words[0], str(run), *words[1:]]
        assert main(command) == MISTAKE
        assert f"add task.environment={environment}" in capsys.readouterr().err
        assert main([*command, "task.environment=another:Env"]) == MISTAKE
        assert f"was trained with {environment}" in capsys.readouterr().err
        assert not (tmp_path / "ran").exists()
        assert main([*command, f"task.environment={environment}"]) == MISTAKE
        assert "no intact checkpoint" in capsys.readouterr().err
        (tmp_path / "ran").unlink()
        del sys.modules["strangers_package"]
