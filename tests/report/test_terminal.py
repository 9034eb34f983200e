from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from emabench.report import format as say
from emabench.report import terminal
from emabench.tables import spec
from emabench.tables.compare import compare
from emabench.tables.gather import Run
from emabench.tables.judge import Judged, judge
from tests.tables import golden


def console(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None)


def printed(on: Console) -> str:
    text = on.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line.rstrip()) <= on.width for line in text.splitlines())
    return text


@pytest.mark.parametrize("width", [80, 100])
def test_a_table(ddpm: Judged, classifiers: Judged, width: int) -> None:
    on = console(width)
    terminal.show(ddpm, on)
    text = printed(on)
    assert all(say.measured(cell.mean) in text for row in ddpm.rows.values() for cell in row.cells.values())
    assert "11/12" in text and "1 of 12 runs diverged (seed 11)" in " ".join(text.split())
    assert "✓ seen in the stand-in" in " ".join(text.split()) and "◐ direction seen" in text
    assert "8.06–12.14" in text and "(−38%)" in text
    assert "4 claims about values themselves can be judged at scale paper alone" in " ".join(text.split())
    on = console(width)
    terminal.show(classifiers, on)
    text = printed(on)
    assert "○ no effect above 0.15" in text and "76.13" in text
    assert "…\n" not in text and text.count("…") == text.count("(+0.89…+1.1%)"), "nothing is cut off"


def test_a_table_that_was_not_run() -> None:
    on = console(80)
    terminal.show(judge(spec.load("ddpm_cifar10"), "small", {"constant": {0: None}}), on)
    text = printed(on)
    assert "· not run" in text and "8.06–12.14" in text


def test_one_run(tmp_path: Path) -> None:
    run = golden.diffusion(tmp_path, 1)["constant"][0]
    assert run
    on = console(100)
    terminal.show_run(run.result, console=on)
    text = printed(on)
    assert "ema_0.998" in text and "347" in text and "10%" in text
    assert "DDPM on CIFAR-10, §16.1: as reported and as published" in text
    assert "Not comparable with the values above" in text
    assert "is_real 9.960" in text
    on = console(100)
    terminal.show_run(run.result, (), on)
    assert "as reported" not in printed(on)


def test_runs_without_numbers() -> None:
    lost = golden.result({"raw": {"fid": None}}, {"fid": "lower"}, status="diverged")
    on = console(80)
    terminal.show_run(lost, (), on)
    assert "✗ diverged: loss was not finite" in printed(on)
    odd = golden.result({"raw": {"fid": None}, "ema_0.9": {"fid": 3.0}}, {"fid": "lower"})
    on = console(80)
    terminal.show_run(odd, (), on)
    assert "not finite" in printed(on)
    bare = golden.result({"raw": {"fid": 2.0}, "swa": {"fid": 1.0}}, {"fid": "lower"})
    for row in bare.rows:
        row.profile.pop("describe", None)  # type: ignore[attr-defined]
    on = console(80)
    terminal.show_run(bare, (), on)
    assert "−50%" in printed(on)


def test_a_comparison(tmp_path: Path) -> None:
    runs = [run for by_seed in golden.classifiers(tmp_path, 3).values() for run in by_seed.values() if run]
    on = console(100)
    terminal.show_comparison(compare(runs), on)
    text = printed(on)
    assert "A  schedule.name=cosine  (seed 0, 1, 2)" in text and "B − A" in text
    unlike = [
        Run(golden.result({"raw": {"fid": 3.0}}, {"fid": "lower"}, measured_with={"fid": m}, run_id=m))
        for m in "ab"
    ]
    on = console(80)
    terminal.show_comparison(compare(unlike), on)
    text = printed(on)
    assert "fid: not comparable, measured with a; b" in text and "3.000" not in text
