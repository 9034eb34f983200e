"""Since when a claim stands, from the history of its table's file."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import yaml

from emabench.tables.gather import Run
from emabench.tables.provenance import chosen_after, claims_since

from . import golden

CLAIM = {"type": "difference", "text": "t", "metric": "m", "row": "a", "over": "b", "article": "better"}


class History:
    """A checkout with one table, committed claim by claim."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.n = folder, 0
        self.git("init", "-q")

    def git(self, *words: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=n@example.org"]
        return subprocess.run(
            ["git", "-C", str(self.folder), *who, *words], check=True, capture_output=True, text=True
        ).stdout.strip()

    def table(self, *claims: dict[str, object], arms: object = None) -> Path:
        """The file as it lies there now; each version under a name of its own, for histories are read once."""
        rows = {key: {"label": key, "arm": key, "average": "raw"} for key in "ab"}
        file = self.folder / "t.yaml"
        data = {"rows": rows, "arms": arms or {"a": [], "b": []}, "seeds": 11, "claims": list(claims)}
        file.write_text(yaml.safe_dump(data))
        return file

    def commit(self, *claims: dict[str, object], arms: object = None) -> str:
        self.table(*claims, arms=arms)
        self.git("add", ".")
        self.n += 1
        self.git("commit", "-q", "--allow-empty", "-m", f"{self.n}")
        return self.git("rev-parse", "HEAD")


def run(commit: str) -> Run:
    result = golden.result({"raw": {"m": 1.0}}, {"m": "lower"})
    return Run(result.__class__(**{**result.__dict__, "environment": {"commit": commit}}))


def test_each_claim_stands_since_its_own_commit(tmp_path: Path) -> None:
    history = History(tmp_path)
    other = {**CLAIM, "article": "worse"}
    first = history.commit(CLAIM)
    reworded = {**CLAIM, "text": "in other words", "note": "a note"}
    second = history.commit(reworded, other)
    file = tmp_path / "t.yaml"
    since = claims_since(file)
    assert [each.commit if each else None for each in since] == [first, second], "words decide nothing"
    # What was run at the first commit is older than the second claim.
    assert [chosen_after(each, [run(first[:12])], file) for each in since] == [False, True]
    assert [chosen_after(each, [run(second[:12])], file) for each in since] == [False, False]
    assert chosen_after(since[0], [run("unknown")], file), (
        "a commit that is not known cannot vouch for a claim"
    )


def test_runs_of_another_repository_are_told_by_their_time(tmp_path: Path) -> None:
    """A table of the user's own, in a repository that does not hold the code that made the runs."""
    history = History(tmp_path)
    history.commit(CLAIM)
    file = tmp_path / "t.yaml"
    (since,) = claims_since(file)
    assert since
    folder = tmp_path / "run"
    folder.mkdir()
    result = folder / "result.json"
    result.write_text("{}")
    other = Run(run("f" * 40).result, folder)
    assert not chosen_after(since, [other], file)
    os.utime(result, (since.time - 10, since.time - 10))
    assert chosen_after(since, [other], file)


def test_what_a_claim_is_about_belongs_to_it(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.commit(CLAIM)
    changed = history.commit(CLAIM, arms={"a": ["steps=10"], "b": []})
    (since,) = claims_since(tmp_path / "t.yaml")
    assert since and since.commit == changed


def test_a_claim_that_came_back_stands_since_it_came_back(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.commit(CLAIM)
    history.commit({**CLAIM, "article": "worse"})
    again = history.commit(CLAIM)
    (since,) = claims_since(tmp_path / "t.yaml")
    assert since and since.commit == again


def test_dropping_a_claim_after_its_data_is_seen_on_the_others(tmp_path: Path) -> None:
    """Fewer claims have more of the level each: a table that lost its failures decides more easily."""
    history = History(tmp_path)
    other = {**CLAIM, "article": "worse"}
    both = history.commit(CLAIM, other)
    dropped = history.commit(CLAIM)
    file = tmp_path / "t.yaml"
    (since,) = claims_since(file)
    assert since and since.commit == dropped
    assert chosen_after(since, [run(both[:12])], file)


def test_what_is_not_committed_is_chosen_after(tmp_path: Path) -> None:
    history = History(tmp_path)
    commit = history.commit(CLAIM)
    file = history.table({**CLAIM, "margin": "1%"})
    (since,) = claims_since(file)
    assert since and since.commit == "" and chosen_after(since, [run(commit)], file)
    assert not chosen_after(since, [], file), "before there are runs nothing can have been seen"


def test_without_a_history_nothing_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(yaml.safe_dump({"claims": [CLAIM]}))
    assert claims_since(file) == [None]
    assert not chosen_after(None, [run("x")], file)
