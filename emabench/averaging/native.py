"""The CPU path in C, where there is a C compiler: one pass over the weights for a whole update (see native.c).

torch runs one parallel region for each operation, and waits for the slowest thread at the end of each; a model of
160 tensors pays that 160 times. The library is built once by `build`, in a second, and needs no headers but the
compiler's. Without a compiler, or with EMABENCH_NATIVE=0, torch's operations serve, with the same results within
rounding.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from emabench.averaging import build, stochastic
from emabench.averaging.tensors import dense

if TYPE_CHECKING:
    from emabench.averaging.kernels import Move

PIECE = 1 << 17  # elements that a thread takes at a time: small enough that none waits long for the last
ALONE = 1 << 20  # weights × averages below which waking other threads costs more than they save
LOG = (
    1 << 18
)  # weights × averages below which the weights are still in the cache when they are looked at twice
_TYPES = {torch.float32: 0, torch.bfloat16: 1}


class _Table(ctypes.Structure):
    """`struct table` of native.c."""

    _fields_ = [
        ("pieces", ctypes.c_int64),
        ("tensors", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("sizes", "owner", "type", "theta", "shadows", "compensation")),
        ("first", ctypes.c_void_p),
        ("half", ctypes.c_int64),
        ("marks", ctypes.c_void_p),
        ("odd", ctypes.c_void_p),
        ("marks_row", ctypes.c_int64),
        ("odd_row", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("marks_at", "odd_at", "done", "taken")),
    ]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The built library, or None where it cannot be built or is switched off. Warns once if it cannot be built."""
    try:
        loaded = build.load()
    except build.Unavailable as reason:
        if not reason.requested:
            warnings.warn(
                f"averages are updated by torch's own operations, slower than in C: {reason}", stacklevel=2
            )
        return None
    pointer, long, integer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    loaded.emabench_update.argtypes = [pointer, long, *[pointer] * 4, integer, integer, pointer]
    loaded.emabench_update.restype = integer
    return loaded


@functools.cache
def _parallel() -> int | None:
    """The address of GOMP_parallel in the OpenMP library that torch has loaded, or None."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    paths = dict.fromkeys(line.split(maxsplit=5)[-1] for line in lines if "/" in line)
    names = ("libgomp", "libiomp", "libomp")
    for path in sorted((p for p in paths if Path(p).name.startswith(names)), key=lambda p: "torch" not in p):
        try:
            return ctypes.cast(ctypes.CDLL(path).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


class Table:
    """Addresses of the live tensors, of every set of averages and of what compensation carries, cut into pieces."""

    def __init__(
        self,
        loaded: ctypes.CDLL,
        live: Sequence[Tensor],
        sets: Sequence[Sequence[Tensor]],
        compensation: Sequence[Sequence[Tensor] | None],
        half: bool = False,
    ) -> None:
        self._update = loaded.emabench_update
        self._can_log = bool(ctypes.c_int32.in_dll(loaded, "emabench_can_log").value)
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

        def addresses(tensors: Sequence[Tensor]) -> list[int]:
            at_zero = [t.data_ptr() for t in tensors]
            return [at_zero[i] + at * tensors[i].element_size() for i, at, _ in cut]

        none = [0] * len(cut)
        self._arrays: dict[str, np.ndarray] = {
            "sizes": np.array([n for _, _, n in cut], dtype=np.int64),
            "owner": np.array([i for i, _, _ in cut], dtype=np.int32),
            "type": np.array([_TYPES[live[i].dtype] for i, _, _ in cut], dtype=np.int32),
            "theta": np.array(addresses(live), dtype=np.int64),
            "shadows": np.array([addresses(s) for s in sets], dtype=np.int64),
            "compensation": np.array(
                [none if c is None else addresses(c) for c in compensation], dtype=np.int64
            ),
        }
        before = np.cumsum([0, *(t.numel() for t in live)])
        self._arrays["first"] = np.array([before[i] + at for i, at, _ in cut], dtype=np.int64)
        self._half = half
        self._weights = sum(n for _, _, n in cut)
        self._table = _Table(pieces=len(cut), tensors=len(live), half=half)
        self._point()
        self._address = ctypes.addressof(self._table)
        self._which = np.empty(len(sets), dtype=np.int32)
        self._source = np.empty(len(sets), dtype=np.int32)
        self._seed = np.empty(len(sets), dtype=np.uint32)
        self._alpha = np.empty((len(sets), len(live)), dtype=np.float32)
        self._call = tuple(a.ctypes.data for a in (self._which, self._source, self._alpha, self._seed))
        self._logs = 0  # moves that have a log

    def _point(self) -> None:
        for name, array in self._arrays.items():
            setattr(self._table, name, array.ctypes.data)

    def _make_log(self, moves: int) -> None:
        """Memory for the undo log of so many averages: a sixteenth of theirs, the rest reserved but hardly touched."""
        sizes = self._arrays["sizes"]
        marks_at = np.concatenate([[0], np.cumsum(sizes // 4)]).astype(np.int64)
        odd_at = np.concatenate([[0], np.cumsum(sizes // 8 + np.minimum(sizes, 4096) + 16)]).astype(np.int64)
        self._logs = moves
        try:
            self._arrays |= {
                "marks_at": marks_at,
                "odd_at": odd_at,
                "marks": np.empty((moves, marks_at[-1]), dtype=np.uint8),
                "odd": np.frombuffer(mmap.mmap(-1, moves * int(odd_at[-1]) * 4), dtype=np.float32),
                "done": np.empty(len(sizes), dtype=np.int64),
                "taken": np.empty((moves, len(sizes)), dtype=np.int64),
            }
        except (MemoryError, OSError):  # without a log the weights are looked at before they are used
            self._arrays.pop("marks", None)
            self._table.marks = None
            return
        self._table.marks_row, self._table.odd_row = marks_at[-1], odd_at[-1]
        self._point()

    def update(self, moves: Sequence[Move], check: bool, number: int = 0) -> bool:
        """average += α (θ − average) for each move.

        With `check`: False, and nothing has moved, if a weight is not finite. number: of the update, for rounding.
        """
        count = len(moves)
        for i, move in enumerate(moves):
            self._which[i] = move.set
            self._source[i] = -1 if move.source is None else move.source
            self._alpha[i] = move.alphas
            if self._half:
                self._seed[i] = stochastic.seed(number, move.set)
        work = self._weights * count
        if check and self._can_log and not self._half and work > LOG and count > self._logs:
            self._make_log(count)
        threads = torch.get_num_threads() if work >= ALONE else 1
        parallel = _parallel() if threads > 1 else None
        return bool(self._update(self._address, count, *self._call, check, threads, parallel))


def table(
    live: Sequence[Tensor],
    sets: Sequence[Sequence[Tensor]],
    compensation: Sequence[Sequence[Tensor] | None],
    half: bool = False,
) -> Table | None:
    """The table for these tensors, or None if the library does not apply: other types, strides or devices.

    half: the averages are in bfloat16, to be rounded stochastically; else they are in float32.
    """
    if not live or not sets:
        return None
    shadow = torch.bfloat16 if half else torch.float32
    if half and any(c is not None for c in compensation):
        return None
    for i, tensor in enumerate(live):
        row = [*(s[i] for s in sets), *(c[i] for c in compensation if c is not None)]
        same_layout = all(r.dtype == shadow and r.stride() == tensor.stride() for r in row)
        if tensor.dtype not in _TYPES or tensor.device.type != "cpu" or not (same_layout and dense(tensor)):
            return None
    loaded = library()
    return Table(loaded, live, sets, compensation, half) if loaded is not None else None
