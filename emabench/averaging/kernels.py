"""The arithmetic of an update: average += alpha · (θ − average) for K averages, in place, at memory speed.

An update is bound by memory, so the weights are read once: they are cut into chunks that fit the cache, and each
chunk serves all K averages before the next is touched (4 + 8K bytes a parameter in float32). Weights of another
type than the averages are converted chunk by chunk. Nothing the size of the model is ever allocated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from emabench.averaging import fused, native, stochastic
from emabench.averaging.tensors import dense

CHUNK = (
    1 << 20
)  # elements; 4 MB of float32 stay in a CPU's last-level cache. Compensated: an eighth, for scratch
GPU_CHUNK = 1 << 24  # on a GPU it only bounds the scratch memory of conversions
SMALL = 1 << 15  # elements below which torch runs an operation on one thread: many such go into one call


@dataclass(frozen=True)
class Move:
    """How one set of averaged tensors moves: which set, the alpha of each tensor, and towards which other set.

    source: the index of the set it moves towards, which must have moved before it; None for the live weights.
    """

    set: int
    alphas: Sequence[float]
    source: int | None = None


@dataclass
class _Chunk:
    """Pieces of tensors that are processed together; every list runs along the pieces."""

    indices: list[int] = field(default_factory=list)  # of the followed tensor that each piece belongs to
    first: list[int] = field(default_factory=list)  # how many elements of the model come before each piece
    theta: list[Tensor] = field(default_factory=list)
    shadows: list[list[Tensor]] = field(default_factory=list)  # by set
    compensation: list[list[Tensor] | None] = field(default_factory=list)  # by set
    staged: list[Tensor] = field(
        default_factory=list
    )  # scratch for θ in the averages' type; empty if it has it
    size: int = 0


class Plan:
    """Views of the live weights and of every set of averages, cut into chunks once and used for every update.

    live: the model's tensors; sets: for each average a list of tensors like them; compensation: for each set the bits
    that compensated summation carries, or None. All tensors at an index share the shape, all shadows at an index
    the type. rounding: "nearest", or "stochastic" for averages in bfloat16 (see `stochastic`).
    """

    def __init__(
        self,
        live: Sequence[Tensor],
        sets: Sequence[Sequence[Tensor]],
        compensation: Sequence[Sequence[Tensor] | None],
        rounding: str = "nearest",
    ) -> None:
        self._layout = _layout(live)
        self._stochastic = rounding == "stochastic"
        live = [t.detach() for t in live]
        self._native = native.table(live, sets, compensation, self._stochastic)
        self._fused = None if any(compensation) else fused.table(live, sets)
        self._scratch: dict[tuple[torch.device, torch.dtype, int], Tensor] = {}
        self._chunks = [] if self._native else list(_chunks(live, sets, compensation))
        self._largest = max((c.size for c in self._chunks), default=0)
        for chunk in self._chunks:
            if self._stochastic:
                continue
            if chunk.theta and chunk.theta[0].dtype != chunk.shadows[0][0].dtype:
                chunk.staged = self._scratch_like([s[0] for s in zip(*chunk.shadows, strict=True)], 0)

    def fits(self, live: Sequence[Tensor]) -> bool:
        """Whether the live tensors still have the memory, shapes, strides and types that this plan was made for."""
        return _layout(live) == self._layout

    def _scratch_like(self, pieces: Sequence[Tensor], slot: int) -> list[Tensor]:
        """Views of one reused buffer, shaped like `pieces`; `slot` separates buffers that are used together."""
        total = sum(p.numel() for p in pieces)
        key = (pieces[0].device, pieces[0].dtype, slot)
        if key not in self._scratch:
            self._scratch[key] = torch.empty(self._largest, device=key[0], dtype=key[1])
        views = torch.split(self._scratch[key][:total], [p.numel() for p in pieces])
        return [v.view(p.shape) for v, p in zip(views, pieces, strict=True)]

    @property
    def arithmetic(self) -> str:
        """What computes the updates: "c", "triton" or "torch". They differ in the last bits of their results."""
        return "c" if self._native is not None else "triton" if self._fused is not None else "torch"

    def update(self, moves: Sequence[Move], check: bool = False, number: int = 0) -> bool:
        """Move each named set towards the live weights.

        With `check`: False, and nothing has moved, if a live weight is not finite. Torch's operations may say so of
        finite weights too, where sums of squares overflow. On a GPU the answer is True at once, and `progress` tells
        later whether update `number` was refused; until `reset` so are all after it.
        """
        if self._native is not None:
            return self._native.update(moves, check, number)
        if self._fused is not None:
            fused.run(self._fused, moves, number, check)
            return True
        if check and not self._finite():
            return False
        self._run(moves, number)
        return True

    @property
    def answers_later(self) -> bool:
        """Whether `update` does not know yet if the weights were finite."""
        return self._fused is not None

    def progress(self, wait: bool) -> tuple[int, int]:
        """(number of the first refused update or 0, number of the last one reached), waiting for the device or not."""
        return fused.progress(self._fused, wait) if self._fused is not None else (0, 0)

    def reset(self) -> None:
        """Let updates be made again after one was refused."""
        if self._fused is not None:
            self._fused.state.zero_()
            self._fused.seen.zero_()

    def _finite(self) -> bool:
        sums = [
            torch.dot(p.reshape(-1), p.reshape(-1)) for c in self._chunks for p in self._theta(c) if p.numel()
        ]
        return bool(torch.stack([s.to(sums[0]) for s in sums]).sum().isfinite()) if sums else True

    def _run(self, moves: Sequence[Move], number: int) -> None:
        for chunk in self._chunks:
            live = self._theta(chunk)
            for m in moves:
                theta = live if m.source is None else chunk.shadows[m.source]
                alphas = [m.alphas[i] for i in chunk.indices]
                if self._stochastic:
                    seed = stochastic.seed(number, m.set)
                    for shadow, piece, alpha, first in zip(
                        chunk.shadows[m.set], theta, alphas, chunk.first, strict=True
                    ):
                        stochastic.lerp(shadow, piece, alpha, stochastic.noise(first, shadow, seed))
                    continue
                compensation = chunk.compensation[m.set]
                if compensation is None:
                    _lerp(chunk.shadows[m.set], theta, alphas)
                    continue
                for shadow, piece, alpha, low in zip(
                    chunk.shadows[m.set], theta, alphas, compensation, strict=True
                ):
                    if alpha == 1.0:  # a copy: nothing of the old content may leak in
                        shadow.copy_(piece)
                        low.zero_()
                    else:
                        self._compensated(shadow, piece, alpha, low)

    @staticmethod
    def _theta(chunk: _Chunk) -> list[Tensor]:
        if chunk.staged:
            torch._foreach_copy_(chunk.staged, chunk.theta)
            return chunk.staged
        return chunk.theta

    def _compensated(self, shadow: Tensor, theta: Tensor, alpha: float, compensation: Tensor) -> None:
        """Kahan's summation of the lerp form: the article's §15.3 code (its eq. 99 compensates nothing)."""
        [y], [new] = self._scratch_like([shadow], 1), self._scratch_like([shadow], 2)
        torch.sub(theta, shadow, out=y)
        y.mul_(alpha).sub_(compensation)
        torch.add(shadow, y, out=new)
        torch.sub(new, shadow, out=compensation)
        compensation.sub_(y)
        shadow.copy_(new)


def _layout(live: Sequence[Tensor]) -> list[tuple[int, torch.Size, tuple[int, ...], torch.dtype]]:
    return [(t.data_ptr(), t.shape, t.stride(), t.dtype) for t in live]


def first_non_finite(names: Iterable[str], tensors: Iterable[Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity, by looking at every element."""
    return next((n for n, t in zip(names, tensors, strict=True) if not t.isfinite().all()), None)


def _lerp(shadows: list[Tensor], theta: list[Tensor], alphas: list[float]) -> None:
    alpha = alphas[0]
    if any(a != alpha for a in alphas):
        for s, t, a in zip(shadows, theta, alphas, strict=True):
            _lerp([s], [t], [a])
    elif alpha == 1.0:  # a copy: nothing of the old content, be it NaN, may leak in
        torch._foreach_copy_(shadows, theta)
    elif alpha == 0.0:
        pass
    elif len(shadows) == 1:
        shadows[0].lerp_(theta[0], alpha)
    else:
        torch._foreach_lerp_(shadows, theta, alpha)


def _chunks(
    live: Sequence[Tensor], sets: Sequence[Sequence[Tensor]], compensation: Sequence[Sequence[Tensor] | None]
) -> Iterable[_Chunk]:
    if not sets:
        return
    open_chunks: dict[tuple[torch.device, torch.dtype, torch.dtype], _Chunk] = {}
    before = 0
    for i, tensor in enumerate(live):
        on_cpu = tensor.device.type == "cpu"
        limit = (CHUNK // 8 if any(compensation) else CHUNK) if on_cpu else GPU_CHUNK
        rows = [tensor, *(s[i] for s in sets), *(one[i] for one in compensation if one is not None)]
        for piece in _cut([torch.view_as_real(r) if r.is_complex() else r for r in rows], limit):
            n = piece[0].numel()
            key = (tensor.device, piece[0].dtype, piece[1].dtype)
            alone = on_cpu and n >= SMALL
            chunk = _Chunk() if alone else open_chunks.setdefault(key, _Chunk())
            if chunk.size and chunk.size + n > limit:
                yield open_chunks.pop(key)
                chunk = open_chunks.setdefault(key, _Chunk())
            _add(chunk, i, piece, len(sets), [one is not None for one in compensation])
            chunk.first.append(before)
            before += n
            if alone:
                yield chunk
    yield from open_chunks.values()


def _add(chunk: _Chunk, index: int, piece: Sequence[Tensor], sets: int, compensated: Sequence[bool]) -> None:
    if not chunk.indices:
        chunk.shadows = [[] for _ in range(sets)]
        chunk.compensation = [[] if c else None for c in compensated]
    chunk.indices.append(index)
    chunk.theta.append(piece[0])
    chunk.size += piece[0].numel()
    for shadows, tensor in zip(chunk.shadows, piece[1 : sets + 1], strict=True):
        shadows.append(tensor)
    for low, tensor in zip(
        (one for one in chunk.compensation if one is not None), piece[sets + 1 :], strict=True
    ):
        low.append(tensor)


def _cut(rows: Sequence[Tensor], limit: int) -> Iterable[Sequence[Tensor]]:
    """The same pieces of at most `limit` elements of each row: in memory order if all rows are dense and of one layout."""
    first = rows[0]
    if all(r.stride() == first.stride() and dense(r) for r in rows):
        flat = [r.as_strided((r.numel(),), (1,), r.storage_offset()) for r in rows]
        yield from zip(*(torch.split(f, limit) for f in flat), strict=True)
    elif first.numel() > limit and first.dim():
        for pieces in zip(
            *(r.tensor_split(min(2, r.shape[_longest(first)]), _longest(first)) for r in rows), strict=True
        ):
            yield from _cut(pieces, limit)
    else:
        yield rows


def _longest(tensor: Tensor) -> int:
    return max(range(tensor.dim()), key=lambda d: tensor.shape[d])
