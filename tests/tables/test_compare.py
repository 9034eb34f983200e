from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from emabench.errors import UserError
from emabench.tables.compare import compare
from emabench.tables.gather import Run

from . import golden


def runs_of(tmp_path: Path, seeds: int) -> list[Run]:
    return [
        run for by_seed in golden.classifiers(tmp_path, seeds).values() for run in by_seed.values() if run
    ]


def test_runs_are_grouped_by_all_but_their_seed(tmp_path: Path) -> None:
    found = compare(runs_of(tmp_path, 4))
    assert [list(group.runs) for group in found.groups] == [[0, 1, 2, 3]] * 2
    assert [group.differs for group in found.groups] == [
        ("schedule.name=cosine",),
        ("schedule.name=constant",),
    ]
    assert found.averages[0] == "raw" and "swa" in found.averages


def test_groups_are_compared_by_seed(tmp_path: Path) -> None:
    found = compare(runs_of(tmp_path, 4))
    a, b = found.groups
    change = found.change(b, "raw", "top1")
    first, second = (np.array(list(group.values("raw", "top1").values())) for group in (a, b))
    paired = stats.ttest_rel(second, first)
    assert change and change.mean == pytest.approx(np.mean(second - first))
    assert change.low == pytest.approx(paired.confidence_interval().low)


def test_only_seeds_that_both_have_are_paired(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, 3)
    found = compare([*runs[:3], *runs[4:]])
    change = found.change(found.groups[1], "raw", "top1")
    assert change and change.n == 2


def test_unlike_measurements_and_unlike_tasks(tmp_path: Path) -> None:
    one = Run(golden.result({"raw": {"fid": 3.0}}, {"fid": "lower"}, measured_with={"fid": "a"}, run_id="x"))
    two = Run(golden.result({"raw": {"fid": 4.0}}, {"fid": "lower"}, measured_with={"fid": "b"}, run_id="y"))
    found = compare([one, two])
    assert found.unlike == {"fid": ["a", "b"]}
    assert found.change(found.groups[1], "raw", "fid") is None
    with pytest.raises(UserError, match="runs of one task"):
        compare([one, *runs_of(tmp_path, 1)])


def test_a_diverged_run_has_no_values() -> None:
    lost = Run(golden.result({"raw": {"fid": None}}, {"fid": "lower"}, status="diverged"))
    found = compare([lost])
    assert found.groups[0].diverged == 1
    assert found.metrics == {}


def test_what_does_not_decide_the_result_sets_no_runs_apart(tmp_path: Path) -> None:
    """Devices, and keys at the default that older configurations lack."""
    runs = runs_of(tmp_path, 2)[:2]
    for run, more in zip(runs, ({"devices": 1, "channels_last": False}, {"devices": 4}), strict=True):
        assert run.path
        file = run.path / "config.yaml"
        file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **more}))
    again = [Run(run.result, run.path) for run in runs]
    assert [list(group.runs) for group in compare(again).groups] == [[0, 1]]


def test_two_runs_of_one_seed_are_both_shown(tmp_path: Path) -> None:
    there = [runs_of(tmp_path / name, 2)[0] for name in ("a", "b")]
    groups = compare(there).groups
    assert [list(group.runs) for group in groups] == [[0], [0]]
    assert [group.differs for group in groups] == [(str(run.path),) for run in there]
