"""What W&B would show, read back from an offline run's file; and that W&B cannot stop a training."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emabench.config import Config
from emabench.runs.directory import RunDirectory
from emabench.runs.result import Result
from emabench.training.run import run
from tests.test_config import config


def records(config: Config) -> Iterator[Any]:
    """Every record of a run's offline files, in the order written.

    The file is a LevelDB log (blocks of 32 KiB; per chunk crc, length, type) of protobuf records, after 7 bytes
    of header.
    """
    from wandb.proto import wandb_internal_pb2

    for path in sorted(config.directory().glob("wandb/offline-run-*/*.wandb")):
        data, at, parts = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            length, kind = struct.unpack_from("<HB", data, at + 4)
            parts += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # a whole record, or its last chunk
                yield wandb_internal_pb2.Record.FromString(parts)
                parts = b""


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
    assert "going on without it" in capsys.readouterr().err
