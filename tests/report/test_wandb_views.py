"""The workspace and the report that W&B would be given: their panels, filters and words, without the network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from emabench.cli import main
from emabench.errors import UserError
from emabench.report import wandb_views
from emabench.runs.directory import RunDirectory
from emabench.tables.judge import Judged


def test_a_workspace_draws_raw_beside_every_average(ddpm: Judged) -> None:
    pytest.importorskip("wandb_workspaces")
    text = json.dumps(wandb_views.spec(wandb_views.workspace(ddpm, "team", "emabench")))
    for average in ("raw", "ema_0.9", "ema_0.998"):
        assert f'"summary_metrics.eval/{average}/fid"' in text
        assert f'"eval/{average}/fid"' in text
    assert '"x": "window", "y": "fid"' in text  # metric against window, from the result's table
    assert '"mediaKeys": ["samples"]' in text
    assert '"name": "group"}, "op": "=", "value": "ddpm_cifar10"' in text


def test_arms_are_drawn_apart(classifiers: Judged) -> None:
    pytest.importorskip("wandb_workspaces")
    view = wandb_views.spec(wandb_views.workspace(classifiers, "team", "emabench"))
    assert "schedule.value.name" in json.dumps(view)


def test_a_report_says_question_verdicts_and_numbers(ddpm: Judged) -> None:
    pytest.importorskip("wandb_workspaces")
    found = wandb_views.report(ddpm, "team", "emabench")
    text = json.dumps(wandb_views.spec(found), ensure_ascii=False)
    assert found.title == "A small DDPM on 8x8 digits (small)"
    assert ddpm.table.question in text
    assert "| measured | n | change | article | published |" in text
    assert "✓ seen in the stand-in" in text
    assert "emabench table ddpm_cifar10" in text
    assert "ddpm_cifar10" in text.partition("runSets")[2]


def test_without_the_extra_it_is_named(ddpm: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(UserError, match=r"pip install 'emabench\[wandb\]'"):
        wandb_views.workspace(ddpm, "team", "emabench")


def test_a_dry_run_prints_what_would_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb_workspaces")
    assert main(["wandb", "report", "variance_law", "--dry-run", f"results_dir={tmp_path}"]) == 0
    assert json.loads(capsys.readouterr().out)["spec"]["blocks"]
    assert not list(tmp_path.iterdir())


def test_sync_lists_a_resumed_run_once_and_skips_what_is_uploaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, parts in {"a": 2, "b": 1, "c": 0}.items():
        (tmp_path / "quadratic" / run).mkdir(parents=True)
        (tmp_path / "quadratic" / run / "config.yaml").write_text("")
        for part in range(parts):
            folder = tmp_path / "quadratic" / run / "wandb" / f"offline-run-20260101_00000{part}-{run}"
            folder.mkdir(parents=True)
            (folder / f"run-{run}.wandb").write_bytes(b"")
            if run == "b":
                (folder / f"run-{run}.wandb.synced").write_bytes(b"")
    assert main(["wandb", "sync", str(tmp_path), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "quadratic/a  2 parts" in out
    assert "1 of 3 runs to upload" in out


@pytest.mark.parametrize(
    "words", [["wandb"], ["wandb", "snyc"], ["wandb", "report"], ["wandb", "sync", "/no/such"]]
)
def test_mistakes_are_named(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "emabench: " in capsys.readouterr().err


def test_sync_says_sent_of_what_was_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B's own command ends with 0 also where it uploaded nothing. Online parts: the last, if it lacks its end."""
    run = tmp_path / "ddpm" / "small-seed0-0"
    parts = [run / "wandb" / f"run-20260101_00000{part}-x" / "run-x.wandb" for part in range(2)]
    for part in parts:
        part.parent.mkdir(parents=True)
        part.write_bytes(b"")
    (run / "config.yaml").write_text("")
    monkeypatch.setattr("wandb.login", lambda **options: True)
    monkeypatch.setattr("emabench.commands.wandb.why_offline", lambda: "nobody answers")
    assert main(["wandb", "sync", str(tmp_path)]) == 1
    assert "nobody answers; nothing was sent" in capsys.readouterr().err
    monkeypatch.setattr("emabench.commands.wandb.why_offline", lambda: "")
    asked = []

    def nothing(command: list[str]) -> subprocess.CompletedProcess[str]:
        asked.append(command[-1])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", nothing)
    assert main(["wandb", "sync", str(tmp_path)]) == 1
    assert "0 of 1 runs sent" in capsys.readouterr().out
    parts[1].with_name("run-x.wandb.synced").touch()
    assert main(["wandb", "sync", str(tmp_path)]) == 0
    assert asked == [str(parts[1])]
    with RunDirectory(run).locked():
        parts[1].with_name("run-x.wandb.synced").unlink()
        assert main(["wandb", "sync", str(tmp_path)]) == 0
    assert "is running; skipped" in capsys.readouterr().out


def test_sync_without_a_login_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ddpm" / "small-seed0-0" / "wandb" / "offline-run-20260101_000000-small-seed0-0"
    folder.mkdir(parents=True)
    (folder / "run-small-seed0-0.wandb").write_bytes(b"")
    (tmp_path / "ddpm" / "small-seed0-0" / "config.yaml").write_text("")
    monkeypatch.setattr("wandb.login", lambda **options: False)
    assert main(["wandb", "sync", str(tmp_path)]) == 2
    assert "`wandb login`" in capsys.readouterr().err
