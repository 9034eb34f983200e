"""The CPU path in C, where there is a C compiler: one parallel region for a whole update (see native.c).

torch runs one parallel region for each operation, and waits for the slowest thread at the end of each; a model of
160 tensors pays that 160 times. The library is built once, in a fraction of a second, into the user's cache, and
needs no headers but the compiler's. Without a compiler, or with EMABENCH_NATIVE=0, the torch path serves, with the
same results within rounding.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from emabench.averaging.tensors import dense

PIECE = 1 << 17  # elements that a thread takes at a time: small enough that none waits long for the last
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC")
_TYPES = {torch.float32: 0, torch.bfloat16: 1}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The built library, or None where it cannot be built or is switched off."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or os.environ.get("EMABENCH_NATIVE") == "0":
        return None
    source = Path(__file__).with_name("native.c")
    try:
        made_of = (source.read_text(), compiler, FLAGS, platform.machine(), _cpu())
        name = f"averaging-{hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]}.so"
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emabench"
        if not (cache / name).exists():
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(
                dir=cache
            ) as folder:  # renamed when whole: others may build it too
                built = Path(folder) / name
                command = [compiler, *FLAGS, str(source), "-o", str(built)]
                subprocess.run(command, check=True, capture_output=True, timeout=60)
                built.replace(cache / name)
        loaded = ctypes.CDLL(str(cache / name))
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None
    pointer, long, integer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    loaded.emabench_move.argtypes = [long, *[pointer] * 6, long, pointer, pointer, long, integer]
    loaded.emabench_move.restype = None
    loaded.emabench_finite.argtypes = [long, *[pointer] * 3, integer]
    loaded.emabench_finite.restype = integer
    return loaded


def _cpu() -> str:
    """What -march=native depends on: a cache in a home that several kinds of machines share must not mix them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


class Table:
    """Addresses of the live tensors, of every set of averages and of what compensation carries, cut into pieces.

    Arrays: sizes, owner (index of the tensor), type, then addresses of θ [pieces], shadows and compensation [sets, pieces].
    """

    def __init__(
        self,
        loaded: ctypes.CDLL,
        live: Sequence[Tensor],
        sets: Sequence[Sequence[Tensor]],
        compensation: Sequence[Sequence[Tensor] | None],
    ) -> None:
        self._library = loaded
        self._keep = (
            list(live),
            [list(s) for s in sets],
            [list(c) if c is not None else None for c in compensation],
        )
        cut = [
            (i, at, min(PIECE, t.numel() - at))
            for i, t in enumerate(live)
            for at in range(0, t.numel(), PIECE)
        ]
        self._tensors, self._count = len(live), len(cut)

        def addresses(tensors: Sequence[Tensor]) -> list[int]:
            at_zero = [t.data_ptr() for t in tensors]
            return [at_zero[i] + at * tensors[i].element_size() for i, at, _ in cut]

        none = [0] * len(cut)
        self._arrays = (
            np.array([n for _, _, n in cut], dtype=np.int64),
            np.array([i for i, _, _ in cut], dtype=np.int32),
            np.array([_TYPES[live[i].dtype] for i, _, _ in cut], dtype=np.int32),
            np.array(addresses(live), dtype=np.int64),
            np.array([addresses(s) for s in sets], dtype=np.int64),
            np.array([none if c is None else addresses(c) for c in compensation], dtype=np.int64),
        )
        self._pointers = [a.ctypes.data for a in self._arrays]

    def finite(self) -> bool:
        """Whether every live weight is finite."""
        sizes, _, kind, theta, _, _ = self._pointers
        return bool(self._library.emabench_finite(self._count, sizes, kind, theta, torch.get_num_threads()))

    def run(self, moves: Sequence[tuple[int, Sequence[float]]]) -> None:
        """average += alpha · (θ − average) for each (set, alpha by tensor)."""
        which = np.array([index for index, _ in moves], dtype=np.int32)
        alpha_rows = np.array([alphas for _, alphas in moves], dtype=np.float32)
        self._library.emabench_move(
            self._count,
            *self._pointers,
            len(moves),
            which.ctypes.data,
            alpha_rows.ctypes.data,
            self._tensors,
            torch.get_num_threads(),
        )


def table(
    live: Sequence[Tensor], sets: Sequence[Sequence[Tensor]], compensation: Sequence[Sequence[Tensor] | None]
) -> Table | None:
    """The table for these tensors, or None if the library does not apply: other types, strides or devices."""
    loaded = library()
    if loaded is None or not live or not sets:
        return None
    for i, tensor in enumerate(live):
        row = [*(s[i] for s in sets), *(c[i] for c in compensation if c is not None)]
        alike = all(r.dtype == torch.float32 and r.stride() == tensor.stride() for r in row)
        if tensor.dtype not in _TYPES or tensor.device.type != "cpu" or not (alike and dense(tensor)):
            return None
    return Table(loaded, live, sets, compensation)
