"""Updates: every average follows the model by one step, or by none if the weights are not finite."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from emabench.averaging import following, gradients
from emabench.averaging._checks import NotFinite
from emabench.averaging.average import Average
from emabench.averaging.interrupts import interrupts_deferred
from emabench.averaging.kernels import Move, Plan, first_non_finite
from emabench.averaging.offload import Offload
from emabench.averaging.tensors import Followed, empty_average
from emabench.averaging.tracked import TrackedModel

Progress = list[tuple[int, list[float]]]
"""Of each average, its `progress`."""


class Updates:
    """Counts updates and makes them; see `Averager` for what the arguments mean.

    tracked: the model; averages: by name; count: updates so far.
    """

    def __init__(
        self,
        tracked: TrackedModel,
        averages: dict[str, Average],
        *,
        new: str,
        dtype: torch.dtype | None,
        rounding: str,
        check_finite: bool,
        offload: bool,
    ) -> None:
        self.tracked, self.averages, self.count = tracked, averages, 0
        self._new, self._dtype, self._rounding, self._check_finite = new, dtype, rounding, check_finite
        self._torn = ""  # why the averages hold half of an update, if they do
        self._unsettled: list[tuple[int, int, Progress]] = []  # updates that a GPU may yet refuse
        self._plan: Plan | None = None
        self._offload = Offload(tracked.live()) if offload else None
        self._sets = [one for a in averages.values() for one in a.sets]
        self._compensation = [a.compensation for a in averages.values() for _ in a.sets]
        with torch.no_grad():
            self._run(self._initial_copies([0]), "before the first update")

    def __getstate__(self) -> dict[str, Any]:
        """For copy.deepcopy and pickle, which copy the model along: all but addresses of memory."""
        return {**self.__dict__, "_plan": None}

    @property
    def arithmetic(self) -> str:
        """What computes the updates: "c", "triton" or "torch"."""
        live = self._offload.staged if self._offload else self.tracked.live()
        return (self._plan or Plan(live, self._sets, self._compensation, self._rounding)).arithmetic

    # -- an update --------------------------------------------------------------------------------------------
    @torch.no_grad()
    def update(self, step: int | None = None) -> None:
        """See `Averager.update`."""
        self.tracked.refuse_while_applied("update")
        self.wait(for_device=False)
        self.refuse_if_torn()
        t = self.count + 1 if step is None else operator.index(step)
        if t < self.count:
            raise ValueError(
                f"step={t}: {self.count} steps were counted already; give the number of steps made so far"
            )
        if t == self.count:
            return
        self.look_for_changes()
        counted, before = self.count, [a.progress for a in self.averages.values()]
        self.count = t
        try:
            moves = self._initial_copies(range(counted + 1, t + 1))
            begun = {move.set for move in moves}
            for average in self.averages.values():
                moves += [move for move in average.moves(t, self._gradient_norms) if move.set not in begun]
        except BaseException:
            self._rewind(counted, before)
            raise
        with interrupts_deferred():
            try:
                self._run(moves, f"at update {t}")
            except Exception:
                self._rewind(counted, before)
                raise
            except BaseException as error:
                self._torn = (
                    f"update {t} was interrupted ({type(error).__name__}) and the averages may hold half of it: load a "
                    "saved state, or make a new averager"
                )
                raise
        if self._offload:
            self._offload.on_failure(lambda: self._rewind(counted, before))
        elif self._check_finite and self._plan is not None and self._plan.answers_later:
            self._unsettled.append((t, counted, before))

    def _gradient_norms(self) -> Mapping[str, float]:
        return gradients.norms(self.tracked.selection.parameters)

    def _initial_copies(self, updates: Sequence[int]) -> list[Move]:
        return [move for average in self.averages.values() for move in average.initial_copies(updates)]

    def _rewind(self, count: int, before: Progress) -> None:
        self.count = count
        for average, progress in zip(self.averages.values(), before, strict=True):
            average.progress = progress

    def _run(self, moves: list[Move], when: str) -> None:
        if not moves:
            return
        live = self.tracked.live()
        if self._offload:
            self._offload.start(live, lambda staged: self._move(staged, moves, when))
        else:
            self._move(live, moves, when)

    def _move(self, live: Sequence[Tensor], moves: list[Move], when: str) -> None:
        if self._plan is None or not self._plan.fits(live):
            self._settle(wait=True)
            self._check_devices(live)
            self._plan = Plan(live, self._sets, self._compensation, self._rounding)
        if not self._plan.update(moves, self._check_finite, self.count):
            bad = first_non_finite([f.name for f in self.tracked.followed], live)
            if bad is not None:
                raise NotFinite(f"{bad!r} is not finite {when}; the averages are as they were before")
            self._plan.update(moves)

    def _check_devices(self, live: Sequence[Tensor]) -> None:
        shadows = self._sets[0] if self._sets else live
        for f, tensor, shadow in zip(self.tracked.followed, live, shadows, strict=True):
            if tensor.device != shadow.device or tensor.shape != shadow.shape:
                raise ValueError(
                    f"{f.name!r} is {tuple(tensor.shape)} on {tensor.device}, its average {tuple(shadow.shape)} on "
                    f"{shadow.device}: make the averager after the model has its shape and device"
                )

    # -- updates in flight ------------------------------------------------------------------------------------
    def wait(self, for_device: bool = True) -> None:
        """Return when the averages are what they should be; raise what an update in flight raised."""
        if self._offload:
            self._offload.wait()
        self._settle(for_device)

    def _settle(self, wait: bool) -> None:
        """Take note of the updates that a GPU has made, or take back those that it refused to make."""
        if not self._unsettled or self._plan is None:
            return
        refused, reached = self._plan.progress(wait)
        if not refused:
            self._unsettled = [entry for entry in self._unsettled if entry[0] > reached]
            return
        self._plan.progress(wait=True)  # what is still in flight is refused as well
        [(counted, before)] = [entry[1:] for entry in self._unsettled if entry[0] == refused]
        undone = self.count - refused + 1
        self._unsettled = []
        self._plan.reset()
        self._rewind(counted, before)
        bad = first_non_finite([f.name for f in self.tracked.followed], self.tracked.live())
        raise NotFinite(
            f"{f'{bad!r} is' if bad else 'the weights were'} not finite, first at update {refused}; the averages are as "
            f"they were before it, the {undone} updates from that one on were not made"
        )

    def refuse_if_torn(self) -> None:
        """RuntimeError if an interrupted update left averages that belong to no step."""
        if self._torn:
            raise RuntimeError(self._torn)

    def reloaded(self, count: int) -> None:
        """The averages' contents were replaced by those of another time, after `count` updates."""
        self.count, self._torn = count, ""
        if self._plan is not None:
            self._plan.reset()

    # -- what is followed -------------------------------------------------------------------------------------
    def look_for_changes(self) -> None:
        """Take over buffers that the model exchanged, as its `to` does; refuse what would leave weights raw."""
        now = self.tracked.reselected()
        if now is None:
            return
        added, gone, stays = following.changes(self.tracked.followed, now)
        replaced = [old for old, f in stays if old.tensor is not f.tensor and not f.is_buffer]
        if self._new == "refuse" and added:
            raise RuntimeError(
                f"{added[0].name!r} was added to the model after the averager was made and would stay raw in every "
                'average: call averager.follow() to average it from now on, or make the averager with new="follow"'
            )
        if replaced or gone:
            raise RuntimeError(
                f"{[*replaced, *gone][0].name!r} was replaced or taken out since the averager was made, which would "
                "average what is no longer in the model: call averager.follow(), or make a new averager"
            )
        self._adopt(now)

    def follow(self) -> list[str]:
        """See `Averager.follow`."""
        self.wait()
        return self._adopt(self.tracked.select())

    def _adopt(self, now: following.Selection) -> list[str]:
        """Follow what `now` holds, taking along the averages of what stays."""
        self._settle(wait=True)
        followed = self.tracked.followed
        added, gone, stays = following.changes(followed, now)
        steppers = [a.profile.stepper([f.name for f in now.followed]) for a in self.averages.values()]
        self.tracked.take(now)
        at = {id(f.tensor): i for i, f in enumerate(followed)}
        sources = {id(f.tensor): at[id(old.tensor)] for old, f in stays}
        order = [sources.get(id(f.tensor)) for f in now.followed]
        live = self.tracked.live()
        for average, stepper in zip(self.averages.values(), steppers, strict=True):
            stepper.state = average.stepper.state
            average.stepper = stepper
            for one in average.sets:
                one[:] = self._carried(one, order, live)
            if average.compensation is not None:
                low = self._carried(average.compensation, order, [torch.zeros_like(value) for value in live])
                average.compensation[:] = low
        self.replaced_memory()
        return _in_words(added, gone, stays)

    @torch.no_grad()
    def _carried(
        self, before: Sequence[Tensor], order: Sequence[int | None], start: Sequence[Tensor]
    ) -> list[Tensor]:
        """Of each tensor that is followed now, its average as it was, or one that starts from `start`."""
        carried = []
        for f, value, i in zip(self.tracked.followed, start, order, strict=True):
            if i is not None and before[i].shape == value.shape:
                carried.append(before[i])
            else:
                carried.append(self.empty(f.tensor).copy_(value))
        return carried

    # -- the averages' memory ---------------------------------------------------------------------------------
    def replaced_memory(self) -> None:
        """Tensors of the model or of the averages are others now."""
        self._plan = None
        if self._offload:
            self._offload = Offload(self.tracked.live())

    def empty(self, tensor: Tensor) -> Tensor:
        """Memory for an average of one of the model's tensors."""
        return empty_average(tensor, self._dtype, self._offload is not None)

    @contextlib.contextmanager
    def memory_kept(self) -> Iterator[None]:
        """Notice if the averages got other memory inside the block, which what is prepared for updates points to."""
        before = self._addresses()
        try:
            yield
        finally:
            if self._addresses() != before:
                self._plan = None

    def _addresses(self) -> list[int]:
        """Where the averages lie. Asking gives a tensor memory of its own, if someone holds a lazy copy of it."""
        return [t.data_ptr() for one in self._sets for t in one]

    def to(self, device: torch.device | str) -> None:
        """See `Averager.to`."""
        self.wait()
        if self._offload:
            raise ValueError(f"to({str(device)!r}): offloaded averages stay on the CPU")
        for one in [*self._sets, *(a.compensation for a in self.averages.values() if a.compensation)]:
            one[:] = [t.to(device) for t in one]
        self.replaced_memory()


def _in_words(
    added: Sequence[Followed], gone: Sequence[Followed], stays: Sequence[tuple[Followed, Followed]]
) -> list[str]:
    return [
        *(f"{f.name!r} is averaged from now on" for f in added),
        *(f"{f.name!r} is no longer in the model" for f in gone),
        *(f"{old.name!r} is called {f.name!r} now" for old, f in stays if old.name != f.name),
        *(f"{f.name!r} was replaced" for old, f in stays if old.tensor is not f.tensor),
    ]
