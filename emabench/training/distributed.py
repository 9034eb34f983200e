"""The processes that train one run together. Nothing else in training knows torch.distributed.

Every process takes the same steps on its share of each batch, and decides the same: what one of them knows alone (a
signal, a clock, a loss) is agreed upon. Whatever ends one process ends them all with the first one's reason.
A process alone is a group of one, for which nothing here does anything.
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
ENDED = "ended"  # the key under which the first process that cannot go on says why
GRACE = 5.0  # seconds that the others have to notice by themselves
WRITING = 60.0  # the same where they were asked to stop: the first may be writing its checkpoint
WEEK = timedelta(days=7)  # one process may measure while the others wait; a dead one is noticed at once
KINDS: dict[str, tuple[type[Exception], int]] = {
    "mistake": (UserError, MISTAKE),
    "failed": (RunFailed, FAILED),
    "interrupted": (Interrupted, INTERRUPTED),
}


@dataclass(frozen=True)
class Place:
    """Where a process stands among those of its run; `store` is what they meet at."""

    rank: int
    world: int
    local: int  # rank among the processes of this machine: its GPU
    store: dist.Store


@dataclass(frozen=True)
class Reason:
    """Why the run cannot go on, in the words of the first process that could not."""

    kind: str
    text: str
    trace: str

    def error(self) -> Exception:
        return KINDS[self.kind][0](self.text)


def place_of_torchrun() -> Place | None:
    """This process's place where torchrun (or anything that speaks its language) started several; else None."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        return None
    store, rank, world = next(dist.rendezvous("env://"))
    return Place(rank, world, int(os.environ.get("LOCAL_RANK", "0")), store)


def reason(store: dist.Store) -> Reason | None:
    """Why the processes that meet at `store` ended, None where none has said."""
    return Reason(**json.loads(store.get(ENDED))) if store.check([ENDED]) else None


class Group:
    """The processes of a run, as one of them sees them. `Group()` is one process alone."""

    def __init__(self, rank: int = 0, world: int = 1, sharded: bool = False) -> None:
        self.rank, self.world, self.sharded = rank, world, sharded
        # Called where this process hangs and must end because another has failed.
        self.on_failure: Callable[[Reason], None] = lambda why: None
        self.reason: Callable[[], Reason | None] = lambda: None
        self._control: Any = None  # a gloo group for decisions: they wait for no GPU
        self._own: Any = None  # this process alone as a group
        self._device = torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this is the process that writes the run's files."""
        return self.rank == 0

    def meet(self, place: Place, device: torch.device) -> None:
        """Wait for the other processes."""
        self._device = device
        cuda = device.type == "cuda"
        if cuda:
            torch.cuda.set_device(device)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=place.store,
            rank=self.rank,
            world_size=self.world,
            device_id=device if cuda else None,
        )
        self._control = dist.new_group(backend="gloo", timeout=WEEK)

    # -- deciding alike -----------------------------------------------------------------------------------------

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag: is it true in any process?"""
        if self.world == 1:
            return flags
        told = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(told, dist.ReduceOp.MAX, group=self._control)
        return tuple(map(bool, told.tolist()))

    def means(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean over processes of each value; all have the same names."""
        if self.world == 1 or not values:
            return dict(values)
        told = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(told, group=self._control)
        return dict(zip(values, (told / self.world).tolist(), strict=True))

    def from_first(self, value: T) -> T:
        """What the first process has, whatever the others have."""
        if self.world == 1:
            return value
        told = [value if self.first else None]
        dist.broadcast_object_list(told, 0, group=self._control)
        return told[0]  # type: ignore[return-value]

    def gathered(self, value: T) -> list[T]:
        """What every process has, by rank."""
        found: list[Any] = [value]
        if self.world > 1:
            found = [None] * self.world
            dist.all_gather_object(found, value, group=self._control)
        return found

    # -- what tasks are handed (see `tasks.base.Context`) -------------------------------------------------------

    def parallel(self, module: nn.Module, synchronise_batchnorm: bool = True) -> nn.Module:
        """The module to train with; see `Context.parallel`. Call it before the optimiser is made."""
        if self.world == 1:
            return module
        if self._device.type == "cuda" and synchronise_batchnorm and has_batchnorm(module):
            nn.SyncBatchNorm.convert_sync_batchnorm(module)  # in place; parameters stay the same objects
            self._own = [dist.new_group([rank]) for rank in range(self.world)][self.rank]
        if self.sharded:
            return _sharded(module, self._device, self.world)
        return nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)

    def alike(self, module: nn.Module) -> bool:
        """Whether each process can measure for all: not where each has batch-norm statistics of its own."""
        apart = self.world > 1 and not self.sharded
        return not apart or all(isinstance(norm, nn.SyncBatchNorm) for norm in batchnorms(module))

    def joined(self, share: Tensor, dim: int = 0) -> Tensor:
        """The shares of all processes, one after the other."""
        if self.world == 1:
            return share
        shares = [torch.empty_like(share, memory_format=torch.contiguous_format) for _ in range(self.world)]
        dist.all_gather(shares, share.detach().contiguous())
        return torch.cat(shares, dim)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over processes of a tensor, detached."""
        if self.world == 1:
            return value.detach()
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.world

    @contextmanager
    def apart(self, module: nn.Module) -> Iterator[None]:
        """Inside the block batch norm asks no other process: each may be measuring something else."""
        norms = [m for m in module.modules() if isinstance(m, nn.SyncBatchNorm)] if self.world > 1 else []
        before = [norm.process_group for norm in norms]
        for norm in norms:
            norm.process_group = self._own
        try:
            yield
        finally:
            for norm, group in zip(norms, before, strict=True):
                norm.process_group = group

    # -- shards -------------------------------------------------------------------------------------------------

    def whole(self, state: Any) -> Any:
        """A state with whole tensors instead of shards, on the CPU, for the first process; all have to ask for it."""
        if not self.sharded:
            return state
        from torch.distributed.tensor import DTensor

        if isinstance(state, Mapping):
            return {key: self.whole(value) for key, value in state.items()}
        if isinstance(state, list | tuple):
            return type(state)(self.whole(value) for value in state)
        if isinstance(state, DTensor):
            full = state.full_tensor()
            return full.cpu() if self.first else None  # one tensor at a time elsewhere
        return state

    def parted(self, state: Any, own: Any) -> Any:
        """The state with this process's shards wherever `own`, of the same form, has shards."""
        if self.sharded and isinstance(state, Mapping) and isinstance(own, Mapping):
            return {key: self.parted(value, own.get(key)) for key, value in state.items()}
        both = isinstance(state, Tensor) and isinstance(own, Tensor)
        return distributed_as(own, state) if both else state


def whole(tensor: Tensor) -> Tensor:
    """A tensor that processes hold in shards or as parts of a sum, as one; all have to ask for it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def _sharded(module: nn.Module, device: torch.device, world: int) -> nn.Module:
    """FSDP2: the items of the outermost module lists one by one, then the rest as one."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world,))

    def blocks(within: nn.Module) -> Iterator[nn.Module]:
        for child in within.children():
            yield from child.children() if isinstance(child, nn.ModuleList) else blocks(child)

    for block in [*blocks(module)]:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


@contextmanager
def together(place: Place, device: str, sharded: bool) -> Iterator[tuple[Group, torch.device]]:
    """A group for as long as the block runs, and this process's device.

    An exception is told to the others, who end with it; whoever ends because another did raises that one's reason.
    """
    group, done = Group(place.rank, place.world, sharded), threading.Event()
    group.reason = lambda: reason(place.store)
    # A connection of its own: the other one is busy whenever this process waits at the store.
    watcher = threading.Thread(target=_watch, args=(place.store.clone(), group, done), daemon=True)
    watcher.start()
    try:
        here = resolve_device(device, place.local)
        group.meet(place, here)
        yield group, here
    except BaseException as error:
        first = _told(place, error)
        if first is not None:
            raise first from error
        raise
    finally:
        done.set()
        # A thread that lets go of the process group while the interpreter ends would abort this process.
        watcher.join(GRACE)
    dist.destroy_process_group()  # not after a failure: it may wait for those who are gone


def _told(place: Place, error: BaseException) -> Exception | None:
    """Say why this process ends. Returns the reason of another that was before it; None where there was none."""
    if isinstance(error, Interrupted | KeyboardInterrupt):
        # All stop together. The first process says so when its files are written: nobody has to hurry it.
        kind, text = (
            "interrupted",
            str(error) or "interrupted; the same command goes on from the last checkpoint",
        )
        if place.rank and isinstance(error, Interrupted):
            return None
    else:
        kind = "mistake" if isinstance(error, UserError) else "failed"
        known = isinstance(error, UserError | RunFailed)
        text = str(error) if known else f"{type(error).__name__}: {error}"
    mine = json.dumps({"kind": kind, "text": text, "trace": traceback.format_exc()})
    try:
        told = place.store.compare_set(ENDED, "", mine).decode()
    except RuntimeError:  # the store is gone with whoever held it: there is nobody to tell
        return None
    return None if told == mine else Reason(**json.loads(told)).error()


def _watch(store: dist.Store, group: Group, done: threading.Event) -> None:
    """End this process when another has said that it ends and this one hangs in something that needs the other."""
    while not done.wait(0.5):
        try:
            why = reason(store)
        except RuntimeError:
            return
        if why is None or done.wait(WRITING if why.kind == "interrupted" else GRACE):
            continue
        if why.kind == "failed":
            group.on_failure(why)
        if group.first:
            print(f"emabench: {why.text}", file=sys.stderr, flush=True)
        os._exit(KINDS[why.kind][1])
