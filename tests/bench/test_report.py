"""Many runs are gathered and reported, each file read once."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from emabench.bench import report as bench
from emabench.commands import report


def test_many_runs_are_reported_and_no_file_is_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    made = set()
    for config in bench.configurations(tmp_path, 80):
        bench.make_up(config)
        made.add(config.directory())
    read: Counter[Path] = Counter()
    inner = os.open

    def counted(path: Path, *args: object, **kwargs: object) -> int:
        name = Path(path)
        if tmp_path in name.parents and name.name in ("result.json", "config.yaml", "history.jsonl"):
            read[name] += 1
        return inner(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", counted)
    page, runs, unreadable = report.write([f"results_dir={tmp_path}"])
    assert runs == len(made)
    assert unreadable == []
    text = page.read_text()
    assert all(path.name in text for path in made)
    results = {path: count for path, count in read.items() if path.name == "result.json"}
    assert len(results) == runs
    assert max(read.values()) == 1
    assert sum(count for path, count in read.items() if path.name == "config.yaml") < runs
