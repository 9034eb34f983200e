"""The examples run, and show what they say they show."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _as_a_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)


def test_the_notebook_averages_and_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="extra `docs` is not installed")
    matplotlib.use("Agg")
    scope: dict[str, Any] = {}
    notebook = json.loads((EXAMPLES / "averaging.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), scope)
            assert cell["outputs"] or cell["execution_count"] in (1, 2)
    assert scope["final"]["300 steps"] > scope["final"]["raw"]
    left, right = scope["figure"].axes
    assert [len(line.get_xdata()) for line in left.lines] == [60, 60]
    assert list(right.lines[1].get_xdata()) == scope["windows"]


def test_the_loop_resumes_and_averages() -> None:
    losses = runpy.run_path(str(EXAMPLES / "train_loop.py"))["main"]()
    assert losses["ema"] < losses["raw"]


def test_the_teacher_is_better_than_labels_alone() -> None:
    accuracies = runpy.run_path(str(EXAMPLES / "teacher.py"))["main"]()
    assert accuracies["teacher"] > accuracies["labels alone"]
