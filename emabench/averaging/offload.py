"""Averages on the CPU, updated in a thread while the device trains on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor


class Offload:
    """One update in flight at a time.

    `start` copies the weights to host memory in the order of the device's own work, so that the next optimiser
    step cannot overtake the copy; the arithmetic runs in a thread once the copy has arrived. The copy, `staged`,
    takes host memory of the model's size, pinned when it comes from a GPU.
    """

    def __init__(self, live: Sequence[Tensor]) -> None:
        self.__setstate__([torch.empty_like(t, device="cpu", pin_memory=t.is_cuda) for t in live])

    def __getstate__(self) -> list[Tensor]:
        """For copy.deepcopy and pickle. A copy's memory is not pinned, so that its transfers are waited for."""
        self.wait()
        return self.staged

    def __setstate__(self, staged: list[Tensor]) -> None:
        self.staged = staged
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="averages")
        self._flight: Future[None] | None = None
        self._undo: Callable[[], None] | None = None

    def start(self, live: Sequence[Tensor], work: Callable[[Sequence[Tensor]], None]) -> None:
        """Stage `live` and run `work` on the copies in the thread."""
        self.wait()
        for staged, tensor in zip(self.staged, live, strict=True):
            staged.copy_(tensor, non_blocking=True)
        events = []
        for device in {t.device for t in live if t.is_cuda}:
            events.append(torch.cuda.current_stream(device).record_event())

        def run() -> None:
            for event in events:
                event.synchronize()
            with torch.no_grad():
                work(self.staged)

        self._flight, self._undo = self._thread.submit(run), None

    def on_failure(self, undo: Callable[[], None]) -> None:
        """What to call, if the work in flight fails, before its error is raised."""
        self._undo = undo

    def wait(self) -> None:
        """Return when nothing is in flight; raise what the work raised."""
        flight, self._flight = self._flight, None
        if flight is None:
            return
        try:
            flight.result()
        except Exception:
            if self._undo:
                self._undo()
            raise
