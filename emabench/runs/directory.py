"""A run's directory: `<results_dir>/<task>/<run_id>/`, and what lies where in it."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import yaml

from emabench.config import Config, identity, without_defaults
from emabench.errors import UserError
from emabench.runs.files import read_yaml, remove_leftovers, write_text
from emabench.runs.result import Result, Row, read_result, read_row, row_to_json, to_json

ORIGIN = (
    "# from outside emabench: "  # begins the lines of config.yaml that say where a task or an average was
)


class Held(UserError):
    """Another process has the run."""


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
        self.measuring = path / "measuring"  # rows of a measurement that is under way
        self.error = path / "error.txt"
        # Exists from `cleared` to the next result: unfinished files are of the new run already.
        self.rerun_begun = path / ".rerun"

    def prepare(self, config: Config) -> None:
        """Make the directory and write `config.yaml`; one that belongs to another configuration is refused."""
        with writable(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            if self.config.exists():
                self._check_identity(config)
            text = yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
            origins = [f"{ORIGIN}{name}: {file}\n" for name, file in config.origins().items()]
            write_text(self.config, "".join(origins) + text)

    def _check_identity(self, config: Config) -> None:
        """The configuration on disk and the one requested have to be of the same run."""
        try:
            existing = read_yaml(self.config)
        except ValueError:
            existing = None
        if not isinstance(existing, dict):
            raise UserError(f"{self.config}: is damaged; move {self.path} away, or set results_dir=…")
        existing, requested = without_defaults(Config, existing), identity(config)
        for key, value in requested.items():
            if existing.get(key) != value:
                raise UserError(
                    f"{self.path}: belongs to another configuration ({key} is {existing.get(key)!r} in it, "
                    f"but {value!r} in this command); move it away, or set results_dir=…"
                )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run; raises Held where another process has it. The lock is released when its process ends."""
        with writable(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / ".lock").open("a+")
        if not _try_lock(file, self.path, patience=1):  # `held` takes it too, for a moment
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise Held(f"{self.path}: is being run by {holder}; wait for it, or stop it first")
        try:
            with suppress(OSError):  # a full disk: the lock holds without a name in it
                os.ftruncate(file.fileno(), 0)
                os.write(file.fileno(), f"process {os.getpid()} of {socket.gethostname()}".encode())
            for folder in (self.path, self.checkpoints, self.snapshots, self.measuring):
                remove_leftovers(folder)
            yield
        finally:
            file.close()

    def held(self) -> bool:
        """Whether a process of this machine (or of one that shares its locks) holds the run."""
        try:
            with (self.path / ".lock").open() as file:
                return not _try_lock(file, self.path, shared=True)
        except (OSError, UserError):  # no lock, or one that cannot be tested
            return False

    def holder(self) -> str:
        """Who holds the run, as `locked` wrote it: process 123 of HOST."""
        try:
            return (self.path / ".lock").read_text(errors="replace").strip()[:200] or "another process"
        except OSError:
            return "another process"

    def result(self) -> Result | None:
        """The result, None while there is none. Raises DamagedResult."""
        return read_result(self.result_file) if self.result_file.exists() else None

    @contextmanager
    def cleared(self) -> Iterator[None]:
        """Inside the block all that training left is moved away; afterwards it is deleted, or moved back if the block raised.

        For `rerun=true`, given once or again: where `rerun_begun` exists, this was done and the new run has started.

        The result goes last: a crash in between leaves a finished run, or one with nothing to resume from.
        """
        before = self.path / "before"
        files = (
            self.checkpoints,
            self.snapshots,
            self.artifacts,
            self.exported,
            self.measuring,
            self.history,
            self.result_file,
        )
        shutil.rmtree(before, ignore_errors=True)
        before.mkdir()
        for each in files:
            if each.exists():
                each.rename(before / each.name)
        self.checkpoints.mkdir()
        self.rerun_begun.touch()
        try:
            yield
        except BaseException:
            self.rerun_begun.unlink()
            self.checkpoints.rmdir()
            for each in before.iterdir():
                each.rename(self.path / each.name)
            raise
        finally:
            shutil.rmtree(before, ignore_errors=True)

    def keep_row(self, step: int, row: Row) -> None:
        """Keep what was measured of one set of weights, for a measurement that is stopped before its last."""
        self.measuring.mkdir(exist_ok=True)
        write_text(self.measuring / f"{step}-{row.average}.json", row_to_json(row))

    def kept_rows(self, step: int) -> dict[str, Row]:
        """The rows kept of this step by average; what cannot be read is measured again."""
        rows = [read_row(file) for file in sorted(self.measuring.glob(f"{step}-*.json"))]
        return {row.average: row for row in rows if row}

    def forget_rows(self) -> None:
        shutil.rmtree(self.measuring, ignore_errors=True)

    def write_result(self, result: Result) -> None:
        write_text(self.result_file, to_json(result))
        if result.status != "failed":
            self.rerun_begun.unlink(missing_ok=True)


def _try_lock(file: IO[str], path: Path, shared: bool = False, patience: float = 0) -> bool:
    """Lock a file, unless another process has it locked for longer than `patience` seconds."""
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.02)
        except OSError as error:
            file.close()
            raise UserError(
                f"results_dir={path.parent.parent}: its file system locks no files ({error.strerror}), so two "
                "processes could have one run; mount it with flock, or choose another with results_dir=…"
            ) from error


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Raises UserError, which names the results directory, where `path` in it (two levels below) cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"results_dir={path.parent.parent}: cannot write {error.filename or path} "
            f"({error.strerror}); choose another with results_dir=…"
        ) from error


def run_directories(results_dir: Path) -> list[Path]:
    """Every run below a results directory, finished or not, in a stable order."""
    return sorted(path.parent for path in results_dir.glob("*/*/config.yaml"))
