"""Write files so that a reader never sees half of one; read what others wrote without trusting it."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path
from typing import IO, Any

import yaml

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
LIMIT = 100_000_000  # bytes of a result or a history
YAML_LIMIT = 1_000_000
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NoRoom(OSError):
    """The disk, a quota or a limit on files is full; the message names the folder and how much is needed."""


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write aside, flush to the disk, rename. An error leaves the previous file, and nothing half-written.

    Raises NoRoom where the disk is full, any other OSError as it comes.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        if error.errno in FULL:
            aside.unlink(missing_ok=True)  # first, so that what it took counts as free
            raise NoRoom(error.errno, no_room(path.parent, len(data), error)) from error
        raise
    finally:
        aside.unlink(missing_ok=True)


def no_room(folder: Path, needed: int | None, error: OSError) -> str:
    """In words: what does not fit where. `needed` in bytes, None where a few are."""
    try:
        free = f"{_bytes(shutil.disk_usage(folder).free)} free"
    except OSError:
        free = "room unknown"
    file = "" if needed is None else f" for a file of {_bytes(needed)}"
    return f"no room in {folder}{file} ({free}; {error.strerror})"


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def remove_leftovers(folder: Path) -> None:
    """What a process that was killed had written aside. Only for who alone writes in the folder."""
    for aside in folder.glob(".*.tmp"):
        aside.unlink(missing_ok=True)


def open_regular(path: Path, limit: int = LIMIT) -> IO[bytes]:
    """Open a file to read it. Raises OSError for what is no regular file, which may never end, and for a larger one.

    limit: bytes that the file may have
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    about = os.fstat(file.fileno())
    problem = ""
    if not stat.S_ISREG(about.st_mode):
        problem = "is not a regular file"
    elif about.st_size > limit:
        problem = f"has {_bytes(about.st_size)}, more than the {_bytes(limit)} that such a file may have"
    if problem:
        file.close()
        raise OSError(errno.EINVAL, problem, str(path))
    return file


def read_bytes(path: Path, limit: int = LIMIT) -> bytes:
    """The content of a regular file. Raises OSError, also for one of more than `limit` bytes."""
    with open_regular(path, limit) as file:
        return file.read(limit)


def read_yaml(path: Path, aliases: bool = False) -> Any:
    """What a YAML file holds. OSError where it cannot be read; ValueError, in a line, where it is no YAML.

    aliases: whether they are taken. A few lines of them may stand for more than fits into memory, so they are not
    in files that come with results.
    """
    try:
        data = read_bytes(path, YAML_LIMIT)
        if (
            not aliases
            and b"*" in data
            and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(data, LOADER))
        ):
            raise ValueError("has an alias (*name); write out what it stands for")
        return yaml.load(data, LOADER)
    except OSError:
        raise
    except Exception as error:  # besides YAMLError, tags with wrong values raise whatever comes (PyYAML 6)
        raise ValueError(f"{path}: {' '.join(str(error).split())[:200] or type(error).__name__}") from error


def write_text(path: Path, text: str) -> None:
    """A small text file, atomically."""
    write_atomically(path, text.encode())


def sync_directory(path: Path) -> None:
    """Make a rename durable: the directory's own entry has to reach the disk too."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
