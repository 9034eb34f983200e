"""What W&B would show, read back from an offline run's file; and that W&B cannot stop a training."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emabench.compose import configuration
from emabench.config import Config
from emabench.runs.directory import RunDirectory
from emabench.runs.result import Result
from emabench.runs.tracking import tracker
from emabench.training.interruption import StopRequest
from emabench.training.start import run
from emabench.training.trainer import Trainer
from tests.test_config import config


def records(config: Config) -> Iterator[Any]:
    """Every record of a run's offline files, in the order written.

    W&B's own process writes them, on a busy machine a moment after the run has let go of it: the last one says
    how the run ended.
    """
    for path in sorted(config.directory().glob("wandb/offline-run-*/*.wandb")):
        end = time.monotonic() + 120
        while not (found := read(path)) or not any(r.WhichOneof("record_type") == "exit" for r in found):
            if time.monotonic() > end:
                break
            time.sleep(0.1)
        yield from found


def read(path: Path) -> list[Any]:
    """A LevelDB log (blocks of 32 KiB; per chunk crc, length, type) of protobuf records, after 7 bytes of header."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        if at + 7 + length > len(data):
            break  # not all of it is written yet
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last chunk
            found.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return found


def history(config: Config) -> list[dict[str, Any]]:
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records(config)
        if record.WhichOneof("record_type") == "history"
    ]


def tracked(tmp_path: Path, *overrides: str) -> Config:
    return config(f"results_dir={tmp_path}", "device=cpu", "log_every=5", "log=offline", *overrides)


def exit_codes(config: Config) -> list[int]:
    return [r.exit.exit_code for r in records(config) if r.WhichOneof("record_type") == "exit"]


def test_an_offline_run_holds_config_group_and_history(tmp_path: Path) -> None:
    asked = tracked(tmp_path, "group=my_table", "evaluate.every=10", "ema.decay=[0.5,0.9]")
    result = run(asked)
    about = next(r.run for r in records(asked) if r.WhichOneof("record_type") == "run")
    assert about.run_id == asked.run_id()
    assert about.run_group == "my_table"
    values = {u.key: json.loads(u.value_json) for u in about.config.update}
    assert values["ema"]["decay"] == [0.5, 0.9]
    lines = history(asked)
    assert [line["step"] for line in lines if "train/loss" in line] == [5, 10, 15, 20]
    measured = [line for line in lines if "eval/ema_0.9/excess_loss" in line]
    assert [line["step"] for line in measured] == [10, 20]
    last = result.row("ema_0.9")
    assert last
    assert measured[-1]["eval/ema_0.9/excess_loss"] == last.metrics["excess_loss"]
    assert exit_codes(asked) == [0]


def test_a_diverged_run_is_marked_failed(tmp_path: Path) -> None:
    asked = tracked(tmp_path, "optimizer.lr=1e30")
    assert run(asked).status == "diverged"
    assert exit_codes(asked) == [1]


@pytest.mark.parametrize("log", ["offline", "wandb"])
def test_a_broken_wandb_stops_nothing(
    tmp_path: Path, log: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network, no disk, no luck")

    monkeypatch.setattr(wandb, "init", refuse)
    asked = tracked(tmp_path, f"log={log}")
    result: Result = run(asked)
    assert result.status == "finished"
    assert RunDirectory(asked.directory()).result() == result
    assert "continuing without it" in capsys.readouterr().err


def test_pictures_and_weights_stand_raw_beside_averaged(tmp_path: Path) -> None:
    words = ["task=ddpm", "scale=smoke", f"results_dir={tmp_path}", "device=cpu", "log=offline"]
    asked = configuration([*words, "log_weights=true", "ema.decay=[0.5,0.9]"])
    result = run(asked)
    names = [row.average for row in result.rows]
    assert names == ["raw", "ema_0.5", "ema_0.9"]
    last = history(asked)[-1]
    assert last["step"] == result.steps
    assert last["samples/captions"] == names
    for name in last["samples/filenames"]:
        assert list(asked.directory().glob(f"wandb/offline-run-*/files/{name}"))
    (file,) = asked.directory().glob(f"wandb/offline-run-*/files/{last['result/path']}")
    table = json.loads(file.read_text())
    assert table["columns"] == ["average", "window", *result.metrics]
    assert [row[0] for row in table["data"]] == names
    assert table["data"][0][1] == 1
    artifacts = [r.artifact for r in records(asked) if r.WhichOneof("record_type") == "artifact"]
    (weights,) = [a for a in artifacts if a.type == "model"]
    kept = {entry.path.split("/")[0] for entry in weights.manifest.contents}
    assert kept == set(names)


def test_weights_are_neither_kept_nor_sent_unless_asked_for(tmp_path: Path) -> None:
    asked = tracked(tmp_path)
    assert asked.run_id() == tracked(tmp_path, "log_weights=true").run_id()
    run(asked)
    assert not RunDirectory(asked.directory()).exported.exists()


def test_runs_of_one_process_stay_apart(tmp_path: Path) -> None:
    """Two that overlap, as well as two in turn: nothing of one is found in the other."""
    both = [tracked(tmp_path, f"seed={seed}") for seed in (0, 1)]
    open_at_once = [tracker(c, RunDirectory(c.directory()), print) for c in both if _made(c)]
    for step in (1, 2):
        for number, each in enumerate(open_at_once):
            each.log(step, {"loss": float(number)})
    for each in open_at_once:
        each.finish(None)
    for number, asked in enumerate(both):
        assert {line["train/loss"] for line in history(asked)} == {number}
        (about,) = [r.run for r in records(asked) if r.WhichOneof("record_type") == "run"]
        assert about.run_id == asked.run_id()
        assert exit_codes(asked) == [1]  # ended early: not a success


def _made(asked: Config) -> bool:
    RunDirectory(asked.directory()).prepare(asked)
    return True


def in_parts(asked: Config, until: int) -> Trainer:
    """The run, trained and measured so far by somebody who is gone."""
    RunDirectory(asked.directory()).prepare(asked)
    training = Trainer(asked, RunDirectory(asked.directory()), StopRequest())
    training.begin()
    training.train(until)
    training.checkpoints.join()
    training.history.close()
    return training


def test_an_offline_run_that_was_stopped_is_told_as_a_whole_when_it_goes_on(tmp_path: Path) -> None:
    """Every step once, in one part, however much W&B has of the part before."""
    asked = tracked(tmp_path, "checkpoint.every=10", "evaluate.every=10", "ema.decay=0.9")
    in_parts(asked, 10).tracker.finish(None)
    run(asked)
    assert len(list(asked.directory().glob("wandb/offline-run-*"))) == 1
    lines = history(asked)
    assert [line["step"] for line in lines if "train/loss" in line] == [5, 10, 15, 20]
    assert [line["step"] for line in lines if "eval/ema_0.9/excess_loss" in line] == [10, 20]
    assert exit_codes(asked) == [0]

    run(asked.model_copy(update={"rerun": True}))
    assert [line["step"] for line in history(asked) if "train/loss" in line] == [5, 10, 15, 20]


def test_a_part_that_was_uploaded_is_gone_on_with(tmp_path: Path) -> None:
    """The parts have one id, and together every step once; the stopped part is no success, the last one is."""
    asked = tracked(tmp_path, "checkpoint.every=10")
    in_parts(asked, 10).tracker.finish(None)
    (file,) = asked.directory().glob("wandb/offline-run-*/*.wandb")
    Path(f"{file}.synced").touch()
    run(asked)
    assert {r.run.run_id for r in records(asked) if r.WhichOneof("record_type") == "run"} == {asked.run_id()}
    assert [line["step"] for line in history(asked) if "train/loss" in line] == [5, 10, 15, 20]
    assert exit_codes(asked) == [1, 0]


def test_a_killed_offline_run_loses_nothing(tmp_path: Path) -> None:
    """SIGKILL takes what W&B's process had not written yet, not what the run's own files have."""
    words = ["task=quadratic", "scale=smoke", "device=cpu", f"results_dir={tmp_path}", "log=offline"]
    words += ["steps=3000", "log_every=10", "checkpoint.every=10"]
    asked = configuration(words)
    steps = asked.directory() / "history.jsonl"
    own = {
        key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"
    }  # W&B's process, not ours
    command = [sys.executable, "-m", "emabench", *words]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=own)
    while not steps.exists() or steps.read_text().count("loss") < 20:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    run(asked)
    assert [line["step"] for line in history(asked) if "train/loss" in line] == list(range(10, 3001, 10))


def test_an_address_that_does_not_answer_delays_a_run_by_seconds(tmp_path: Path) -> None:
    """In a process of its own, for wandb reads its settings once."""
    words = ["task=quadratic", "scale=smoke", "device=cpu", f"results_dir={tmp_path}", "log=wandb"]
    environment = os.environ | {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    # wandb's own patience with an address is minutes: a run that waited for it would not end in this time.
    command = [sys.executable, "-m", "emabench", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("logging offline") == 1
    assert exit_codes(configuration(words)) == [0]


def test_project_and_entity_are_those_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "elsewhere")
    monkeypatch.setenv("WANDB_ENTITY", "a-team")
    asked = tracked(tmp_path)
    run(asked)
    about = next(r.run for r in records(asked) if r.WhichOneof("record_type") == "run")
    assert (about.project, about.entity) == ("elsewhere", "a-team")
