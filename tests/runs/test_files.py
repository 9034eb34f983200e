"""What a run leaves on disk can be read back, and is never taken for what it is not."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from emabench.errors import UserError
from emabench.runs.directory import RunDirectory, run_directories
from emabench.runs.files import write_atomically
from emabench.runs.history import History, lines
from emabench.runs.result import DamagedResult, Result, Row, measured, read_result, to_json
from tests.test_config import config

RESULT = Result(
    run_id="smoke-seed0-abc",
    task="ddpm",
    scale="smoke",
    seed=0,
    steps=10,
    status="finished",
    rows=(Row("raw", {}, {"fid": 3.5}), Row("ema_0.9", {"kind": "ema"}, {"fid": 3.0})),
    metrics={"fid": "lower"},
    measured_with={"fid": "features"},
    references={"fid_real_halves": 1.0},
    timing={"train_s": 1.0},
    environment={},
)


def test_result_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(to_json(RESULT))
    assert read_result(path) == RESULT


def test_what_is_not_finite_is_null_with_a_reason(tmp_path: Path) -> None:
    row = measured("raw", {}, {"fid": math.nan, "is": 2})
    assert row.metrics == {"fid": None, "is": 2.0}
    assert "nan" in row.reasons["fid"]
    path = tmp_path / "result.json"
    path.write_text(to_json(replace(RESULT, rows=(row,))))
    assert json.loads(path.read_text(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert read_result(path).rows == (row,)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", '{"schema": 1}', to_json(RESULT)[:-40]),
        to_json(RESULT).replace("3.5", '"x"'),
        to_json(RESULT).replace('"schema": 1', '"schema": 0'),
        to_json(RESULT).replace("finished", "done"),
    ],
)
def test_damaged_results_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(DamagedResult, match=r"result\.json"):
        read_result(path)


def test_history_forgets_what_came_after_the_step_it_is_taken_up_at(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path, 0)
    for step in (10, 20, 30):
        history.add(step=step, loss=math.inf if step == 20 else 1.0)
    history.add(step=20, eval={"raw": {"fid": math.nan}})
    history.close()
    with path.open("a") as file:
        file.write('{"step": 4')  # cut short by a crash
    history = History(path, 20)
    assert history.measured == {20}
    history.add(step=25, loss=2.0)
    history.close()
    assert list(lines(path)) == [
        {"step": 10, "loss": 1.0},
        {"step": 20, "loss": None},
        {"step": 20, "eval": {"raw": {"fid": None}}},
        {"step": 25, "loss": 2.0},
    ]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_directory_of_another_configuration_is_refused(tmp_path: Path) -> None:
    mine, other = config(f"results_dir={tmp_path}"), config(f"results_dir={tmp_path}", "seed=1")
    directory = RunDirectory(mine.directory())
    directory.prepare(mine)
    directory.prepare(mine)  # again: the same run
    with pytest.raises(UserError, match=r"another configuration \(seed"):
        directory.prepare(other)
    directory.config.write_text("]")
    with pytest.raises(UserError, match="damaged"):
        directory.prepare(mine)
    assert run_directories(tmp_path) == [mine.directory()]


def test_unwritable_results_dir_is_the_users_to_fix(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    mine = config(f"results_dir={tmp_path}/file/results")
    with pytest.raises(UserError, match="results_dir="):
        RunDirectory(mine.directory()).prepare(mine)


def test_second_process_on_a_run_is_told(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    with (
        directory.locked(),
        pytest.raises(UserError, match="is being run by process"),
        RunDirectory(tmp_path).locked(),
    ):
        pytest.fail("two processes hold one run")
    with directory.locked():
        pass  # the first is gone: free again
