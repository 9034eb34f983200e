"""The benchmark of the averages runs, and writes what it measured."""

import json

import pytest
from torch import nn

from emabench.bench import averaging


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(
        averaging, "MODELS", {"tiny": lambda: nn.Sequential(nn.Linear(9, 9), nn.BatchNorm1d(9))}
    )


def test_it_measures_and_writes(tiny, tmp_path, capsys):
    averaging.main(
        [
            "--rounds",
            "2",
            "--model",
            "tiny",
            "--k",
            "1",
            "2",
            "--threads",
            "1",
            "2",
            "--device",
            "cpu",
            "--out",
            str(tmp_path),
        ]
    )
    page = (tmp_path / "averaging.md").read_text()
    assert page in capsys.readouterr().out
    record = json.loads((tmp_path / "averaging.json").read_text())
    assert {(row["k"], row["threads"]) for row in record["rows"]} == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert record["machine"]["small_microseconds"] > 0
    assert set(averaging.OURS) <= {row["variant"] for row in record["rows"]}
    assert all(row["ratio"] > 0 for row in record["rows"])
    assert record["machine"]["cores"]


def test_peers_that_are_not_installed_are_named(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(averaging, "PEERS", {"nobody": ("no-such-package", averaging.timm_v3)})
    averaging.main(
        ["--rounds", "2", "--model", "tiny", "--k", "1", "--device", "cpu", "--out", str(tmp_path)]
    )
    assert "Not installed, so not measured: no-such-package" in (tmp_path / "averaging.md").read_text()
