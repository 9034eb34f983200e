"""A run's directory: `<results_dir>/<task>/<run_id>/`, and what lies where in it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from emabench.config import Config, identity, said
from emabench.errors import UserError
from emabench.runs.files import read_yaml, remove_leftovers, write_text
from emabench.runs.result import Result, read_result, to_json


class RunDirectory:
    """The files of one run. Everything a run leaves behind is in here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.history = path / "history.jsonl"
        self.result_file = path / "result.json"
        self.checkpoints = path / "checkpoints"
        self.artifacts = path / "artifacts"
        self.snapshots = path / "snapshots"
        self.exported = path / "export"
        self.error = path / "error.txt"

    def prepare(self, config: Config) -> None:
        """Make the directory and write `config.yaml`; one that belongs to another configuration is refused."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            if self.config.exists():
                self._check_identity(config)
            text = yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
            write_text(self.config, text)
        except OSError as error:
            raise UserError(
                f"results_dir={config.results_dir}: cannot write {error.filename or self.path} "
                f"({error.strerror}); choose another with results_dir=…"
            ) from error

    def _check_identity(self, config: Config) -> None:
        """The configuration on disk and the one asked for have to be of the same run."""
        try:
            there = read_yaml(self.config)
        except ValueError:
            there = None
        if not isinstance(there, dict):
            raise UserError(f"{self.config}: is damaged; move {self.path} away, or set results_dir=…")
        there, asked = said(Config, there), identity(config)
        for key, value in asked.items():
            if there.get(key) != value:
                raise UserError(
                    f"{self.path}: belongs to another configuration ({key} is {there.get(key)!r} there, "
                    f"{value!r} asked for); move it away, or set results_dir=…"
                )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run: a second process that wants it is told so. The lock dies with its process."""
        try:
            file = (self.path / ".lock").open("a+")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written to ({error.strerror})") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise UserError(
                f"{self.path}: is being run by {holder}; wait for it, or stop it first"
            ) from error
        try:
            with suppress(OSError):  # a full disk: the lock holds without a name in it
                os.ftruncate(file.fileno(), 0)
                os.write(file.fileno(), f"process {os.getpid()}".encode())
            for folder in (self.checkpoints, self.snapshots):
                remove_leftovers(folder)
            yield
        finally:
            file.close()

    def result(self) -> Result | None:
        """The result, None while there is none. Raises DamagedResult."""
        return read_result(self.result_file) if self.result_file.exists() else None

    def clear(self) -> None:
        """Forget what was found here, the result first, so that a crash in between leaves an unfinished run."""
        self.result_file.unlink(missing_ok=True)
        self.history.unlink(missing_ok=True)
        shutil.rmtree(self.checkpoints)
        self.checkpoints.mkdir()

    def write_result(self, result: Result) -> None:
        write_text(self.result_file, to_json(result))


def run_directories(results_dir: Path) -> list[Path]:
    """Every run below a results directory, finished or not, in a stable order."""
    return sorted(path.parent for path in results_dir.glob("*/*/config.yaml"))
