"""Where claims and numbers come from: since when a claim stands, what decided a run, and what is not pooled.

A claim is a prediction only of runs that were decided after it. The history of the table's file says since which commit
it stands as it does; a run says the commit that decided it.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from emabench.runs.files import LOADER
from emabench.tables.gather import Run

POOLABLE = {  # what may differ between runs only where asked for (pool=…), and how a run says it
    "code": lambda run: f"commit {_of(run, 'commit')}, torch {_of(run, 'torch')}",
    "precision": lambda run: _of(run, "precision"),
    "device": lambda run: _of(run, "device"),
}
IN_WORDS = {
    "text",
    "note",
    "sources",
    "section",
    "check",
    "cannot_hold",
}  # keys of a claim that decide nothing


@dataclass(frozen=True)
class Since:
    """The commit since which a claim stands as it does, and when that was; `commit` is empty where it is not committed."""

    commit: str
    date: str
    time: float = 0.0  # of the commit, in seconds since 1970

    @property
    def short(self) -> str:
        return self.commit[:12]


def _of(run: Run, key: str) -> str:
    return str(run.result.environment.get(key) or "not stated")


def unlike(runs: Iterable[Run], pool: Collection[str] = ()) -> str:
    """In which of code, precision and device these runs differ that are not to be pooled, in words; "" for none."""
    runs = list(runs)
    keys = ("commit", "torch", "precision", "device")
    if len({tuple(run.result.environment.get(key) for key in keys) for run in runs}) < 2:
        return ""
    for name, of in POOLABLE.items():
        counts: dict[str, int] = {}
        for run in runs:
            counts[of(run)] = counts.get(of(run), 0) + 1
        if name not in pool and len(counts) > 1:
            listed = "; ".join(f"{count} of {text}" for text, count in sorted(counts.items()))
            return f"the runs differ in {name} ({listed}); rerun=true trains them again with one, pool={name} takes them as they are"
    return ""


def claims_since(file: Path) -> list[Since | None]:
    """For each claim of a table's file, since when it stands; None where no history is to be had.

    Dropping a claim leaves its part of the level to the others, which then stand since that.
    """
    commits = _history(file)
    now = _digests(_parsed(file.read_bytes()))
    if not commits:
        return [None] * len(now)
    since: list[Since | None] = [Since("", "")] * len(now)
    still = set(range(len(now)))
    for commit, date, time in commits:  # from the newest back, as far as each has the claim
        before = _digests(_parsed(_content(file, commit)))
        if len(before) > len(now):
            break
        still = {i for i in still if now[i] in before}
        for i in still:
            since[i] = Since(commit, date, time)
        if not still:
            break
    return since


def chosen_after(since: Since | None, runs: Sequence[Run], file: Path) -> bool:
    """Was a claim written after some of these runs were made?

    A run says the commit that made it. Where that is of another repository (a table of the user's own), the time of
    its result decides; a run of which nothing is known counts as older than the claim.
    """
    if since is None or not runs:
        return False
    if not since.commit:
        return True
    return any(_older(run, since, file.parent) for run in runs)


def _older(run: Run, since: Since, folder: Path) -> bool:
    commit = _of(run, "commit").rstrip("+")
    if _known(commit, folder):
        return not _is_ancestor(since.commit, commit, folder)
    result = run.path / "result.json" if run.path else None
    return result is None or not result.exists() or result.stat().st_mtime < since.time


def head(folder: Path) -> str | None:
    """The commit of a checkout, for results that are made in this process; None where there is none."""
    out = _git(folder, "rev-parse", "--short=12", "HEAD")
    return out.decode().strip() if out else None


def _digests(table: Mapping[str, Any]) -> list[str]:
    """What decides each claim: its own keys, its rows with their arms, and the plan."""
    rows, arms = table.get("rows") or {}, table.get("arms") or {}
    shared = [table.get("task"), table.get("seeds"), table.get("overrides")]
    digests = []
    for claim in table.get("claims") or []:
        keys = [claim.get("row"), claim.get("over"), *(claim.get("along") or [])]
        named = {key: rows.get(key) or {} for key in keys if key}
        decided = {
            key: [row.get("average"), arms.get(row.get("arm")), row.get("reported"), row.get("published")]
            for key, row in named.items()
        }
        about = {key: value for key, value in claim.items() if key not in IN_WORDS}
        digests.append(json.dumps([about, decided, shared], sort_keys=True, default=str))
    return digests


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        data = yaml.load(content, LOADER)
    except Exception:  # a version of the file that was not YAML
        return {}
    return data if isinstance(data, dict) else {}


def _git(folder: Path, *words: str) -> bytes | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


@cache
def _history(file: Path) -> list[tuple[str, str, float]]:
    """Commits that changed the file, the newest first, with their dates and times."""
    out = _git(file.parent, "log", "--format=%H %cs %ct", "--", file.name)
    lines = [line.split() for line in out.decode().splitlines()] if out else []
    return [(commit, date, float(time)) for commit, date, time in lines]


@cache
def _content(file: Path, commit: str) -> bytes:
    return _git(file.parent, "show", f"{commit}:./{file.name}") or b""


@cache
def _known(commit: str, folder: Path) -> bool:
    return _git(folder, "cat-file", "-e", f"{commit}^{{commit}}") is not None


@cache
def _is_ancestor(older: str, newer: str, folder: Path) -> bool:
    return _git(folder, "merge-base", "--is-ancestor", older, newer) is not None
