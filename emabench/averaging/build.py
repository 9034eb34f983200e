"""Builds native.c once for this machine and keeps the library where nobody else can put one.

The folder `kernels` in the cache (EMABENCH_CACHE, else emabench in XDG_CACHE_HOME or ~/.cache) belongs to the user
and is closed to others. A library's name holds what it was built from and its own checksum; it is loaded only if it
is the user's, not writable by others and as its checksum says, and built again otherwise. Where the cache cannot be
used the library is built for this process alone.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("native.c")
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC", "-pthread")


class Unavailable(Exception):
    """Why there is no library; `requested` if that was asked for."""

    def __init__(self, reason: str, requested: bool = False) -> None:
        super().__init__(reason)
        self.requested = requested


def folder() -> Path:
    """Where libraries are kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emabench"
    return Path(os.environ.get("EMABENCH_CACHE") or cache) / "kernels"


def load() -> ctypes.CDLL:
    """The library, built if need be. Raises Unavailable."""
    if os.environ.get("EMABENCH_NATIVE") == "0":
        raise Unavailable("switched off by EMABENCH_NATIVE=0", requested=True)
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise Unavailable(
            "there is no C compiler (cc, gcc or clang) on the PATH; EMABENCH_NATIVE=0 says so in advance"
        )
    source = SOURCE.read_bytes()
    made_of = (source, compiler, FLAGS, platform.machine(), _cpu())
    stem = f"averaging-{hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]}-"
    try:
        return _from(folder(), stem, compiler)
    except OSError:
        with tempfile.TemporaryDirectory(prefix="emabench-") as private:
            try:
                return _from(Path(private), stem, compiler)
            except OSError as error:
                raise Unavailable(f"the built library cannot be loaded ({error})") from error


def _from(place: Path, stem: str, compiler: str) -> ctypes.CDLL:
    """The library kept in `place`, or built into it. OSError if the place cannot be used or the file not loaded."""
    _make_private(place)
    for path in sorted(place.glob(f"{stem}*.so")):
        if _sound(path):
            return ctypes.CDLL(str(path))
        path.unlink()
    with tempfile.TemporaryDirectory(dir=place) as work:
        built = Path(work) / "built.so"
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(built)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        except (OSError, subprocess.SubprocessError) as error:
            words = getattr(error, "stderr", None) or b""
            last = words.decode(errors="replace").strip().rpartition("\n")[2]
            raise Unavailable(f"{compiler} does not build it ({last or error})") from error
        built.chmod(0o700)
        path = place / f"{stem}{_digest(built)}.so"
        built.replace(path)  # in one step, and only when whole: others may be building it too
    return ctypes.CDLL(str(path))


def _make_private(place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.mkdir(mode=0o700, exist_ok=True)
    about = place.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
        raise PermissionError(f"{place} is not a folder of this user's own")
    if about.st_mode & 0o077:
        others_wrote = about.st_mode & 0o022
        place.chmod(0o700)
        if others_wrote:  # whatever lies in it may be theirs
            for path in place.glob("*.so"):
                path.unlink()


def _sound(path: Path) -> bool:
    about = path.lstat()
    own = stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & 0o022
    return own and path.stem.endswith(_digest(path))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _cpu() -> str:
    """What -march=native depends on: a cache in a home that several kinds of machines share must not mix them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
