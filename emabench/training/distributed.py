"""The processes that train one run together. Nothing else in training knows torch.distributed.

Every process takes the same steps on its shard of each batch, and decides the same: what only one of them knows (a
signal, a clock, a loss) is reduced over all. Whatever ends one process ends them all with the first one's reason.
A single process is a group of one, for which every operation is the identity.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from emabench.averaging.batchnorm import batchnorms, has_batchnorm
from emabench.averaging.tensors import distributed_as, is_sharded
from emabench.errors import FAILED, INTERRUPTED, MISTAKE, Interrupted, RunFailed, UserError
from emabench.training.environment import resolve_device

T = TypeVar("T")
END_KEY = "ended"  # store key: why the first process that had to stop did
GRACE = 5.0  # seconds that the other processes have to notice by themselves
WRITING = 60.0  # the same after a signal: the main process may be writing its checkpoint
WEEK = timedelta(days=7)  # one process may measure while the others wait; a dead one is noticed immediately
KINDS: dict[str, tuple[type[Exception], int]] = {
    "mistake": (UserError, MISTAKE),
    "failed": (RunFailed, FAILED),
    "interrupted": (Interrupted, INTERRUPTED),
}


@dataclass(frozen=True)
class RankInfo:
    """The place of a process in its run; the processes find each other at `store`."""

    rank: int
    world_size: int
    local_rank: int  # among the processes of this machine: the index of its GPU
    store: dist.Store


@dataclass(frozen=True)
class Reason:
    """Why the run ended, as the first process that had to stop reports it."""

    kind: str
    text: str
    trace: str

    def error(self) -> Exception:
        return KINDS[self.kind][0](self.text)


def torchrun_rank_info() -> RankInfo | None:
    """This process's rank where torchrun (or anything that sets its variables) started several; else None."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        return None
    store, rank, world_size = next(dist.rendezvous("env://"))
    return RankInfo(rank, world_size, int(os.environ.get("LOCAL_RANK", "0")), store)


def end_reason(store: dist.Store) -> Reason | None:
    """Why the processes of `store` ended; None while none has."""
    return Reason(**json.loads(store.get(END_KEY))) if store.check([END_KEY]) else None


class Group:
    """The processes of a run, as one of them sees them. `Group()` is a single process."""

    def __init__(self, rank: int = 0, world_size: int = 1, sharded: bool = False) -> None:
        self.rank, self.world_size, self.sharded = rank, world_size, sharded
        # Called where this process hangs in a collective and has to end because another one failed.
        self.on_failure: Callable[[Reason], None] = lambda why: None
        self.end_reason: Callable[[], Reason | None] = lambda: None
        self._control: Any = None  # a gloo group for decisions, which need not wait for a GPU
        self._own: Any = None  # a group of this process only
        self._device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files (rank 0)."""
        return self.rank == 0

    def connect(self, rank_info: RankInfo, device: torch.device) -> None:
        """Initialise torch.distributed; waits for the other processes."""
        self._device = device
        cuda = device.type == "cuda"
        if cuda:
            torch.cuda.set_device(device)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=rank_info.store,
            rank=self.rank,
            world_size=self.world_size,
            device_id=device if cuda else None,
        )
        self._control = dist.new_group(backend="gloo", timeout=WEEK)

    # -- collective decisions ------------------------------------------------------------------------------------

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is true in any process."""
        if self.world_size == 1:
            return flags
        values = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self._control)
        return tuple(map(bool, values.tolist()))

    def mean_scalars(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean of each value over processes, which all pass the same names."""
        if self.world_size == 1 or not values:
            return dict(values)
        total = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(total, group=self._control)
        return dict(zip(values, (total / self.world_size).tolist(), strict=True))

    def broadcast(self, value: T) -> T:
        """The main process's value, in every process. JSON data: nothing that is received is unpickled."""
        if self.world_size == 1:
            return value
        data = _encoded(value if self.is_main else None)
        size = torch.tensor([len(data)])
        dist.broadcast(size, 0, group=self._control)
        if not self.is_main:
            data = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(data, 0, group=self._control)
        return _decoded(data)

    def gather_objects(self, value: T) -> list[T]:
        """Every process's value, by rank. JSON data: nothing that is received is unpickled."""
        if self.world_size == 1:
            return [value]
        data = _encoded(value)
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([len(data)]), group=self._control)
        padded = torch.zeros(int(max(sizes)), dtype=torch.uint8)
        padded[: len(data)] = data
        received = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(received, padded, group=self._control)
        return [_decoded(each[: int(size)]) for each, size in zip(received, sizes, strict=True)]

    # -- what tasks use (see `tasks.base.Context`) --------------------------------------------------------------

    def parallel(self, module: nn.Module, synchronise_batchnorm: bool = True) -> nn.Module:
        """The module to train with; see `Context.parallel`. Call it before the optimiser is made."""
        if self.world_size == 1:
            return module
        if self._device.type == "cuda" and synchronise_batchnorm and has_batchnorm(module):
            nn.SyncBatchNorm.convert_sync_batchnorm(module)  # in place; parameters stay the same objects
            self._own = [dist.new_group([rank]) for rank in range(self.world_size)][self.rank]
        if self.sharded:
            return _fully_shard(module, self._device, self.world_size)
        return nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)

    def same_batchnorm(self, module: nn.Module) -> bool:
        """Whether all processes hold the same batch-norm statistics, so that each can measure for all."""
        replicated = self.world_size > 1 and not self.sharded
        return not replicated or all(isinstance(norm, nn.SyncBatchNorm) for norm in batchnorms(module))

    def all_gather(self, shard: Tensor, dim: int = 0) -> Tensor:
        """The shards of all processes, concatenated by rank along `dim`; detached."""
        if self.world_size == 1:
            return shard
        shards = [
            torch.empty_like(shard, memory_format=torch.contiguous_format) for _ in range(self.world_size)
        ]
        dist.all_gather(shards, shard.detach().contiguous())
        return torch.cat(shards, dim)

    def all_reduce_mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over processes, detached."""
        if self.world_size == 1:
            return value.detach()
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.world_size

    @contextmanager
    def local_batchnorm(self, module: nn.Module) -> Iterator[None]:
        """Inside the block SyncBatchNorm reduces over this process only: others may be measuring something else."""
        norms = (
            [m for m in module.modules() if isinstance(m, nn.SyncBatchNorm)] if self.world_size > 1 else []
        )
        before = [norm.process_group for norm in norms]
        for norm in norms:
            norm.process_group = self._own
        try:
            yield
        finally:
            for norm, group in zip(norms, before, strict=True):
                norm.process_group = group

    # -- sharded state (FSDP) ------------------------------------------------------------------------------------

    def full_tensor(self, state: Any) -> Any:
        """A state with full tensors for shards, on the CPU of the main process. Collective."""
        if not self.sharded:
            return state
        from torch.distributed.tensor import DTensor

        if isinstance(state, Mapping):
            return {key: self.full_tensor(value) for key, value in state.items()}
        if isinstance(state, list | tuple):
            return type(state)(self.full_tensor(value) for value in state)
        if isinstance(state, DTensor):
            full = state.full_tensor()
            return full.cpu() if self.is_main else None  # one tensor at a time elsewhere
        return state

    def shard(self, state: Any, own: Any) -> Any:
        """The inverse: this process's shards of a full state, wherever `own` (of the same structure) has shards."""
        if self.sharded and isinstance(state, Mapping) and isinstance(own, Mapping):
            return {key: self.shard(value, own.get(key)) for key, value in state.items()}
        both = isinstance(state, Tensor) and isinstance(own, Tensor)
        return distributed_as(own, state) if both else state


def _encoded(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _decoded(data: Tensor) -> Any:
    return json.loads(data.numpy().tobytes())


def full_tensor(tensor: Tensor) -> Tensor:
    """A DTensor (shards, or parts of a sum) as one tensor. Collective; other tensors are returned as they are."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def _fully_shard(module: nn.Module, device: torch.device, world_size: int) -> nn.Module:
    """FSDP2: each item of the outermost module lists is a unit, and what remains is one more."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world_size,))

    def blocks(within: nn.Module) -> Iterator[nn.Module]:
        for child in within.children():
            yield from child.children() if isinstance(child, nn.ModuleList) else blocks(child)

    for block in [*blocks(module)]:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


@contextmanager
def process_group(rank_info: RankInfo, device: str, sharded: bool) -> Iterator[tuple[Group, torch.device]]:
    """A connected group for the length of the block, and this process's device.

    An exception is announced to the other processes, which end too; one that ends because of another raises that
    one's reason.
    """
    group, done = Group(rank_info.rank, rank_info.world_size, sharded), threading.Event()
    group.end_reason = lambda: end_reason(rank_info.store)
    # A connection of its own: the first one blocks whenever this process waits for the store.
    watcher = threading.Thread(target=_watch, args=(rank_info.store.clone(), group, done), daemon=True)
    watcher.start()
    try:
        local_device = resolve_device(device, rank_info.local_rank)
        group.connect(rank_info, local_device)
        yield group, local_device
    except BaseException as error:
        earlier = _announce(rank_info, error)
        if earlier is not None:
            raise earlier from error
        raise
    finally:
        done.set()
        # A thread that releases the process group while the interpreter shuts down would abort this process.
        watcher.join(GRACE)
    dist.destroy_process_group()  # not after a failure: it could wait for processes that have ended


def _announce(rank_info: RankInfo, error: BaseException) -> Exception | None:
    """Tell the other processes why this one ends. Returns the reason of one that ended earlier, else None."""
    if isinstance(error, Interrupted | KeyboardInterrupt):
        # All stop together. The main process announces it once its files are written: the others must not hurry it.
        kind, text = (
            "interrupted",
            str(error) or "interrupted; the same command resumes from the last checkpoint",
        )
        if rank_info.rank and isinstance(error, Interrupted):
            return None
    else:
        kind = "mistake" if isinstance(error, UserError) else "failed"
        known = isinstance(error, UserError | RunFailed)
        text = str(error) if known else f"{type(error).__name__}: {error}"
    own = json.dumps({"kind": kind, "text": text, "trace": traceback.format_exc()})
    try:
        first = rank_info.store.compare_set(END_KEY, "", own).decode()
    except RuntimeError:  # the store ended with the process that hosted it
        return None
    return None if first == own else Reason(**json.loads(first)).error()


def _watch(store: dist.Store, group: Group, done: threading.Event) -> None:
    """End this process when another one has ended and this one hangs in a collective that needs it."""
    while not done.wait(0.5):
        try:
            why = end_reason(store)
        except RuntimeError:
            return
        if why is None or done.wait(WRITING if why.kind == "interrupted" else GRACE):
            continue
        if why.kind == "failed":
            group.on_failure(why)
        if group.is_main:
            print(f"emabench: {why.text}", file=sys.stderr, flush=True)
        os._exit(KINDS[why.kind][1])
