"""Averages rebuilt after training are the ones that were carried along it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from emabench.averaging import EMA
from emabench.averaging.posthoc import rebuild
from emabench.cli import main
from emabench.errors import DONE, MISTAKE
from emabench.runs.directory import RunDirectory
from emabench.training import snapshots
from emabench.training.start import restored, run
from tests.test_config import config


def test_a_rebuilt_ema_is_the_carried_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = config(
        f"results_dir={tmp_path}", "device=cpu", "steps=1000", "ema.decay=0.99", "snapshots.every=25"
    )
    result = run(asked)
    directory = RunDirectory(asked.directory())
    training = restored(asked, directory, {})
    kept = snapshots.list_snapshots(directory.snapshots, training.averager)
    assert [s.step for s, _ in kept] == list(range(25, 1001, 25)) * 2
    weights, fit = rebuild(
        [s for s, _ in kept],
        snapshots.load_states([path for _, path in kept]),
        EMA(decay=0.99, debias=True),
        1000,
    )
    exact = training.averager.export("ema_0.99")["theta"]
    raw = training.model.state_dict()["theta"]
    assert fit.moved < 0.05
    # Within a few per cent of the distance that averaging moved the weights by.
    assert torch.linalg.norm(weights["theta"] - exact) < 0.05 * torch.linalg.norm(raw - exact)

    assert main(["posthoc", str(directory.path), "decay=0.99"]) == DONE
    row = result.row("ema_0.99")
    assert row
    assert "decay 0.99" in capsys.readouterr().out
    assert main(["posthoc", str(directory.path), "--curve"]) == DONE
    assert (directory.path / "posthoc_excess_loss.svg").read_text().startswith("<svg")


def test_snapshots_that_are_gone_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = config(f"results_dir={tmp_path}", "device=cpu", "steps=100", "snapshots.every=30")
    run(asked)
    assert main(["posthoc", str(asked.directory()), "decay=0.9"]) == DONE
    assert "missing" not in capsys.readouterr().err
    next(RunDirectory(asked.directory()).snapshots.glob("*-00000060.pt")).unlink()
    assert main(["posthoc", str(asked.directory()), "decay=0.9"]) == DONE
    assert "1 snapshots are missing, power_" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [(["decay=0.9"], "snapshots.every"), (["decay=1.5"], "decay=1.5"), ([], "give one of")],
)
def test_mistakes_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    asked = config(f"results_dir={tmp_path}", "device=cpu", "steps=5")
    run(asked)
    assert main(["posthoc", str(asked.directory()), *words]) == MISTAKE
    assert message in capsys.readouterr().err
