"""`emabench new`: what it writes runs as it is, nothing is overwritten, and it says what to run next."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from emabench import cli


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory whose name has a space in it."""
    folder = tmp_path / "my work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def suggested(printed: str) -> dict[str, list[str]]:
    """The commands that `new` says to run, by the word before each."""
    lines = [line.partition("emabench ") for line in printed.splitlines() if "emabench " in line]
    return {before.strip(): shlex.split(command) for before, _, command in lines if "wrote" not in before}


def results() -> list[dict]:
    return [json.loads(path.read_text()) for path in Path("results").glob("*/*/result.json")]


def test_an_average_runs_as_it_is_written(capfd) -> None:
    assert cli.main(["new", "average", "growing", "--path", "own folder"]) == 0
    assert cli.main(suggested(capfd.readouterr().out)["try"]) == 0
    (result,) = results()
    rows = {row["average"]: row for row in result["rows"]}
    assert rows["mine"]["profile"]["kind"] == "growing"
    # The window of 100 steps is not full after 20: until then it is the uniform mean.
    assert rows["mine"]["profile"]["describe"]["centre_of_mass"] == pytest.approx(9.5)


def test_a_table_runs_and_is_judged_as_it_is_written(capfd) -> None:
    assert cli.main(["new", "table", "mine"]) == 0
    assert cli.main([*suggested(capfd.readouterr().out)["try"], "jobs=1"]) == 0
    assert len(results()) == 4  # two seeds of two arms
    printed = capfd.readouterr().out
    assert "own table" in printed and "§" not in printed
    shown = " ".join(printed.split())
    assert (
        "3 claims judged. Exploratory, without a known chance of false verdicts: scale smoke is for trying out."
        in shown
    )
    assert "A long window is better than no average" in Path("results/report/mine-smoke.html").read_text()


def test_a_table_is_of_the_folders_task_or_the_one_asked_for(somewhere: Path, capfd) -> None:
    assert cli.main(["new", "task", "spiral"]) == 0
    assert cli.main(["new", "table", "spirals"]) == 0
    assert "task: spiral\n" in (somewhere / "emabench_plugins/conf/table/spirals.yaml").read_text()
    assert cli.main(["new", "table", "words", "task=lstm"]) == 0
    text = (somewhere / "emabench_plugins/conf/table/words.yaml").read_text()
    assert "task: lstm" in text and "perplexity: {label: perplexity, better: lower}" in text
    assert cli.main(["new", "table", "policy", "task=td3"]) == 2
    assert "td3_target.yaml" in capfd.readouterr().err


def test_a_metric_runs_as_it_is_written_and_a_table_judges_it(somewhere: Path, capfd) -> None:
    assert cli.main(["new", "metric", "size"]) == 0
    assert cli.main([*suggested(capfd.readouterr().out)["try"], "ema.decay=[0.9]"]) == 0
    (result,) = results()
    assert result["metrics"] == {"excess_loss": "lower", "distance": "lower", "size": "lower"}
    for row in result["rows"]:  # `distance` is the same of 64 coordinates, as a root mean square
        assert row["metrics"]["size"] == pytest.approx(8 * row["metrics"]["distance"])
    assert "metrics/size" in result["environment"]["plugins"]
    at = ["--path", "emabench_plugins"]
    assert cli.main(["new", "table", "sizes"]) == 0
    table = somewhere / "emabench_plugins/conf/table/sizes.yaml"
    text = table.read_text().replace("excess_loss", "size")
    table.write_text(text.replace('["ema.decay=[0.5,0.9]"]', '["ema.decay=[0.5,0.9]", "metrics=[size]"]'))
    assert cli.main(["table", "sizes", "scale=smoke", "seeds=1", "jobs=1", *at]) == 0
    assert "size ↓" in capfd.readouterr().out


def test_a_sweep_runs_as_it_is_written(capfd) -> None:
    assert cli.main(["new", "sweep", "rates"]) == 0
    commands = suggested(capfd.readouterr().out)
    assert cli.main(commands["look"]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 2
    assert cli.main([*commands["try"], "jobs=1"]) == 0
    assert len(results()) == 2


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["task", "quadratic"], "conf/task/quadratic.yaml"),
        ([], "new task|table|average|metric|sweep NAME"),
        (["tabel", "x"], "did you mean 'table'"),
        (["table", "my-table"], "letters, digits and _"),
        (["table", "../x"], "letters, digits and _"),
        (["table", "bert"], "conf/table/bert.yaml"),
        (["average", "mean"], "there is an average of that name"),
        (["sweep", "x", "key=optimizer.lr"], "key=optimizer.lr"),
        (["table", "x", "task=nothing"], "there is no task 'nothing'"),
    ],
)
def test_mistakes_are_named_and_write_nothing(words: list[str], part: str, somewhere: Path, capfd) -> None:
    assert cli.main(["new", *words]) == 2
    assert part in capfd.readouterr().err
    assert not list(somewhere.iterdir())


def test_nothing_is_overwritten(somewhere: Path, capfd) -> None:
    assert cli.main(["new", "sweep", "rates"]) == 0
    file = somewhere / "emabench_plugins/conf/sweep/rates.yaml"
    file.write_text("key: optimizer.lr\nvalues: [1]\n")
    assert cli.main(["new", "sweep", "rates"]) == 2
    assert str(file) in capfd.readouterr().err
    assert file.read_text() == "key: optimizer.lr\nvalues: [1]\n"
